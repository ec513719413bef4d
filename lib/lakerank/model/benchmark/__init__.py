"""How fast scoring is on this machine: workloads, contenders, interleaved timings, and the arithmetic beside them."""
