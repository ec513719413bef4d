"""Any reranker that sentence-transformers' CrossEncoder loads without remote code, computed by that library."""
