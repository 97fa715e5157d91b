"""Reads and writes the run folder: the trial records, which are the truth of a search, and more.

Knows the configuration, but no driver, no Ray and no tracker.
"""
