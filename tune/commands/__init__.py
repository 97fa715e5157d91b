"""TODO tune.commands."""
