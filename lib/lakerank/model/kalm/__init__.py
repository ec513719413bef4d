"""KaLM-Reranker: an encoder reads the document, a decoder the query."""
