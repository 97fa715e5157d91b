"""TODO tune.cluster.capacity."""
