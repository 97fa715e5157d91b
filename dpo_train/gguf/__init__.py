"""Writes a model as a GGUF file for llama.cpp and Ollama, with a Modelfile. It knows no search."""
