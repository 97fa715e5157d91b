"""The code that runs in Ray's worker processes: trials, their engines, and the final tasks."""
