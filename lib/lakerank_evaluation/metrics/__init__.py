"""Measures of ranked lists and their confidence intervals."""
