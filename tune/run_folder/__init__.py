"""TODO tune.run_folder."""
