"""A model written as a GGUF file for llama.cpp and Ollama, with a Modelfile. Knows no search."""
