"""The winner on the Hugging Face Hub: its repository, its model card, the push."""
