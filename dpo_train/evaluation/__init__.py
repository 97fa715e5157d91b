"""Compares base and winner on the test split, and by the KL on sampled answers."""
