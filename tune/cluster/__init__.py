"""The Ray that a search runs on: the connection, its capacity, its versions and hardware."""
