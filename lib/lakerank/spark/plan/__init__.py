"""Plan a run, step by step: index, queries, join, split, lookup, cut."""
