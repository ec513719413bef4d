"""Ranked, labelled lists from logits: bias and sigmoid, graded labels, ranks within a query."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]


def relevance(logits: Float32, logit_bias: float) -> Float32:
    """sigmoid(logit − bias) in float32: (P,) -> (P,), each in [0, 1].

    The bias belongs to the checkpoint (2.65 for jina-reranker-m0: `LOGIT_BIAS` in its published modelling code).
    """
    shifted = logits.astype(np.float32) - np.float32(logit_bias)
    # exp of a negative number only: no overflow, and full precision at both ends.
    decay = np.exp(-np.abs(shifted))
    result: Float32 = np.where(shifted >= 0, 1 / (1 + decay), decay / (1 + decay)).astype(np.float32)
    return result


def labels(relevances: Float32, thresholds: Sequence[float]) -> npt.NDArray[np.int8]:
    """Graded labels, the number of rising thresholds that each relevance reaches: (P,) -> (P,) int8."""
    edges = np.asarray(thresholds, dtype=np.float32)
    return np.searchsorted(edges, relevances, side="right").astype(np.int8)


def ranks(query_starts: npt.NDArray[np.bool_], carried: int = 0) -> npt.NDArray[np.int32]:
    """Ranks from 1 within each query of a sequence already sorted by query, logit descending and doc_id.

    Args:
        query_starts: (P,), true where a row has another query than the row before it.
        carried: rank of the row before the first; rows up to the first start continue from it.
    """
    positions = np.arange(len(query_starts), dtype=np.int64)
    start_of_query = np.maximum.accumulate(np.where(query_starts, positions, -1))
    since_start = np.where(start_of_query >= 0, positions - start_of_query, positions + carried)
    return (since_start + 1).astype(np.int32)
