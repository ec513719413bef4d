"""jina-reranker-m0: Qwen2-VL with an MLP score head."""
