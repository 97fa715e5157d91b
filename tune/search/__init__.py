"""TODO tune.search.driver."""
