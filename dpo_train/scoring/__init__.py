"""Log-probs of pairs, the metrics that are made of them, and their uncertainty."""
