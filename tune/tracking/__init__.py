"""Trackers: a child process follows the trial records and shows them in services like W&B."""
