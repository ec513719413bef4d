"""Scores to ranked lists: grouped by query, combined, written."""
