"""Published evaluation benchmarks, from the files of their publishers into lake tables."""
