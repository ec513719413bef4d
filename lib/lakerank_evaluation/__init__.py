"""How good a ranking is: metrics and the report."""
