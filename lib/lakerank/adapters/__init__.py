"""Rerankers for pipelines of LangChain, LlamaIndex and Haystack: each module needs its library."""
