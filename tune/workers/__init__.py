"""What runs in Ray's processes: trials, their engines, and the tasks that end a search."""
