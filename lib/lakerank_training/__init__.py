"""Teaching a reranker: LoRA or full training on lake tables."""
