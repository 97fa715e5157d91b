"""Base and winner compared: the test split, and KL on answers that they sample."""
