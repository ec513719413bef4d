"""Text cross-encoders: bge-reranker and jina-reranker-v2."""
