"""Benchmarks in the files that their publishers ship: what is where, and how it becomes rows."""
