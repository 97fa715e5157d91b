"""TODO tune.report.page."""
