"""The rerank job: plan, score, rank, on any `Runner`: Spark or, for a small lake, this process."""
