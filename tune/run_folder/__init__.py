"""The run folder: the trial records, which are the truth of a search, and what lies beside them.

Knows the configuration, and no driver, no Ray and no tracker.
"""
