"""The evaluation report: HTML, plots, tables and the terminal summary."""
