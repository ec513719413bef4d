"""Ranked lists as search indexes, evaluation tools and learning to rank take them: pure, a list at a time."""
