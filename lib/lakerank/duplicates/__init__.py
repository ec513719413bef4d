"""Near duplicates: sketches of documents, buckets of candidates, and clusters by content."""
