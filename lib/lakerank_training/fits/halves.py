"""What a fit says of queries that it was not fitted to."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lakerank_evaluation.analysis.scores import ScoredPairs
from lakerank_evaluation.metrics.measures import Floats, Ints


def held_out(pairs: ScoredPairs, predict: Callable[[ScoredPairs, ScoredPairs], Floats | Ints | None]) -> Floats | None:
    """What `predict(fitted, measured)` says of each half of the queries, fitted to the other: (N,), or None."""
    result = np.zeros(len(pairs))
    for half in (0, 1):
        measured = pairs["half"] != half
        predicted = predict(pairs[~measured], pairs[measured])
        if predicted is None:
            return None
        result[measured] = predicted
    return result
