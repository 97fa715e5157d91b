"""Weights & Biases: a child process follows the trial records and tells W&B about them."""
