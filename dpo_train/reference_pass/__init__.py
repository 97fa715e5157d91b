"""Computes the reference log-probs: tokenises rows, scores them in shards, merges the splits."""
