"""Recognises the form of a preference dataset, and reads its rows."""
