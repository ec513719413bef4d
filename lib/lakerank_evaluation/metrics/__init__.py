"""Metrics over ranked lists and their confidence intervals."""
