"""Listwise rerankers: jina-reranker-v3 and -v3.5, and language models that write a list's order."""
