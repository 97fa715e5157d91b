"""What people read of a search: `report.html` and the terminal's tables, made from its results."""
