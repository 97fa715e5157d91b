"""The driver of a search: what is tried, what goes on, which trial wins."""
