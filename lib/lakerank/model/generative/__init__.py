"""Generative rerankers: MonoQwen2-VL, Qwen3-VL-Reranker and Qwen3-Reranker."""
