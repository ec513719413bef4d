"""Running networks: packed batches, attention, memory budgets and the rerankers that batch their input."""
