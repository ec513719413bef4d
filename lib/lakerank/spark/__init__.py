"""Where things run: the only room that imports pyspark."""
