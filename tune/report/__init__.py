"""Shows a search to people: `report.html` and the terminal's tables, made from its results."""
