"""Element-wise functions of a network's rows: torch's own and, on a GPU, kernels of one pass over memory."""
