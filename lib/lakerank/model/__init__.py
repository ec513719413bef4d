"""The reranker itself: prompt, images, network, engine and checkpoints. Works without Spark."""
