"""Slow, independent writings of what lakerank computes: oracles of the tests, contenders of the benchmark."""
