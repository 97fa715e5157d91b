"""Shows a search in services like W&B, by a child process that follows the trial records."""
