"""TODO tune.workers."""
