"""The Ray cluster that a search runs on: connection, capacity, versions and hardware."""
