"""The forms that preference data comes in, and which of them a whole dataset has."""
