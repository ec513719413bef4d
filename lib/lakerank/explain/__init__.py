"""Reasons: which parts of a document carried the score of a pair."""
