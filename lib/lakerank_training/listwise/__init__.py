"""The recipe `listwise`: a small network in jina-reranker-v3's layout, trained on lists of texts."""
