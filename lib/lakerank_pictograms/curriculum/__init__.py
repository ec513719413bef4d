"""The curriculum by which the bundled checkpoint learns from scratch, as a recipe of `lakerank_training`."""
