"""Log-probs of pairs, the metrics computed from them, and the metrics' uncertainty."""
