"""Discounted cumulative gain: nDCG of one list, and what a random order of the candidates is expected to reach."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: Measures of the random baseline, in the order of its columns.
RANDOM_BASELINE = ("nDCG@5", "nDCG@10", "Recall@10", "Recall@100")


def ndcg(gains: Sequence[float], judged_gains: Sequence[float], depth: int) -> float:
    """nDCG@depth of one list with linear gains, as trec_eval has it; 0 where no judged document has a gain.

    Args:
        gains: the gain of each listed document, best rank first; 0 for documents without a judgement.
        judged_gains: the gains of all judged documents of the query, listed or not, in any order.

    Source: K. Järvelin, J. Kekäläinen, Cumulated gain-based evaluation of IR techniques (ACM TOIS 20, 2002).
    """
    ideal = _dcg(sorted(judged_gains, reverse=True), depth)
    return _dcg(gains, depth) / ideal if ideal > 0 else 0.0


def _dcg(gains: Sequence[float], depth: int) -> float:
    top = np.maximum(np.asarray(gains[:depth], np.float64), 0)
    return float((top / np.log2(np.arange(len(top)) + 2)).sum())


def random_baseline(candidates: Ints, query: Ints, relevance: Ints, is_candidate: npt.NDArray[np.bool_]) -> Floats:
    """Expected figures of a random order of the candidates, exactly: (Q, len(RANDOM_BASELINE)).

    Every candidate is equally likely at every rank, so the expected gain at each is the mean gain of the candidates,
    and E[DCG@k] = mean gain × Σ_{i ≤ min(k, n)} 1 / log2(i + 1). The ideal DCG is that of all judgements.

    Args:
        candidates: (Q,) candidates of each query.
        query, relevance, is_candidate: (J,) each judgement's query, ascending; its grade; whether its document is a
            candidate.
    """
    queries = len(candidates)
    gain = np.maximum(relevance, 0).astype(np.float64)
    order = np.lexsort((-gain, query))
    starts = np.searchsorted(query, np.arange(queries))
    discount = 1 / np.log2(np.arange(len(query)) - starts[query] + 2)  # of each judgement at its ideal rank
    candidate_gain = np.bincount(query, gain * is_candidate, queries)
    relevant_candidates = np.bincount(query, (gain > 0) & is_candidate, queries)
    relevant = np.bincount(query, gain > 0, queries)
    columns = []
    for depth in (5, 10):
        counted = np.where(discount >= 1 / np.log2(depth + 1) - 1e-12, discount, 0)
        ideal = np.bincount(query[order], gain[order] * counted, queries)
        sums = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(depth) + 2))])
        expected = ratio(candidate_gain, candidates) * sums[np.minimum(candidates, depth)]
        columns.append(ratio(expected, ideal))
    for depth in (10, 100):
        share_listed = ratio(np.minimum(candidates, depth), candidates)
        columns.append(ratio(share_listed * relevant_candidates, relevant))
    return np.stack(columns, axis=1)


def ratio(part: npt.NDArray[np.generic], whole: npt.NDArray[np.generic]) -> Floats:
    """part / whole element by element, 0 where whole is 0."""
    parts = np.asarray(part, np.float64)
    result: Floats = np.divide(parts, whole, out=np.zeros_like(parts), where=np.asarray(whole) != 0)
    return result
