"""Ranked, labelled lists from logits: relevance, labels and ranks, and one list from the scores of several scorers.

S scorers and P pairs throughout: `logits` (S, P) is NaN where a scorer has no score, because it never got the pair or
rejected it. `query` (P,) numbers each pair's query. `document` (P,) orders the pairs' documents by doc_id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.integer[Any]]


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


def best_of_groups(query: Numbers, group: Numbers, most: int) -> npt.NDArray[np.bool_]:
    """Which pairs of lists in order are among the first `most` of their group in their list: (P,) each -> (P,).

    `group` numbers the documents' groups; -1 is no group.
    """
    order = np.lexsort((group, query))  # stable: pairs of a group stay in the order of the list
    starts = (np.diff(query[order], prepend=-1) != 0) | (np.diff(group[order], prepend=-2) != 0)
    kept = np.empty(len(order), bool)
    kept[order] = ranks(starts) <= most
    return np.asarray(kept | (group < 0))


@dataclass(frozen=True, slots=True)
class Fusion:
    """How an ensemble's lists are fused: the method, a weight for each scorer (they sum to 1), and the constant k.

    `reciprocal_rank` sums 1 / (k + rank) over the scorers; the weights only affect the relevance (Cormack, Clarke,
    Büttcher: Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods, SIGIR 2009; k is 60
    there). `weighted` sums weight × min-max of the logits within the query (the sum: Fox and Shaw, Combination of
    Multiple Searches, TREC-2, 1994; min-max: Lee, Analyses of Multiple Evidence Combination, SIGIR 1997; weights: Vogt
    and Cottrell, Fusion Via a Linear Combination of Scores, Information Retrieval 1, 1999). In both a scorer that has
    no score for a pair adds nothing to it.
    """

    method: Literal["reciprocal_rank", "weighted"]
    weights: tuple[float, ...]
    k: float = 60.0


def list_order(query: Numbers, score: Float32, document: Numbers) -> Int64:
    """The order of ranked lists: by query, score descending, doc_id: (P,) each -> (P,)."""
    return np.lexsort((document, -score, query))


def scorer_ranks(query: Numbers, logits: Float32, document: Numbers) -> Int64:
    """Each pair's rank from 1 in each scorer's list of its query: (S, P) -> (S, P), 0 where it has none."""
    result = np.zeros(logits.shape, np.int64)
    for scorer, scores in enumerate(logits):
        has = np.flatnonzero(~np.isnan(scores))
        order = has[list_order(query[has], scores[has], document[has])]
        result[scorer, order] = ranks(np.diff(query[order], prepend=-1) != 0)
    return result


def reciprocal_ranks(ranks: Int64, k: float) -> Float32:
    """Sum of 1 / (k + rank) over the scorers that rank a pair: (S, P) -> (P,), in (0, S / (k + 1)]."""
    shares = np.where(ranks > 0, 1.0 / (k + np.maximum(ranks, 1)), 0.0)
    return np.asarray(shares.sum(axis=0), dtype=np.float32)


def min_max(query: Numbers, logits: Float32) -> Float64:
    """Min-max normalised logits of one scorer within each query: (P,) -> (P,) in [0, 1], 0 for NaN.

    Where a query's logits are all equal, each becomes 1.
    """
    scaled = np.zeros(len(logits))
    has = np.flatnonzero(~np.isnan(logits))
    if not len(has):
        return scaled
    distinct, of = np.unique(query[has], return_inverse=True)
    values = logits[has].astype(np.float64)
    low, high = np.full(len(distinct), np.inf), np.full(len(distinct), -np.inf)
    np.minimum.at(low, of, values)
    np.maximum.at(high, of, values)
    spread = (high - low)[of]
    scaled[has] = np.where(spread > 0, (values - low[of]) / np.where(spread > 0, spread, 1.0), 1.0)
    return scaled


def fused(query: Numbers, logits: Float32, document: Numbers, fusion: Fusion) -> Float32:
    """The score that orders an ensemble's list: (S, P) -> (P,), comparable within a query only."""
    if fusion.method == "reciprocal_rank":
        return reciprocal_ranks(scorer_ranks(query, logits, document), fusion.k)
    shares = [weight * min_max(query, scores) for weight, scores in zip(fusion.weights, logits, strict=True)]
    return np.asarray(np.minimum(np.sum(shares, axis=0), 1.0), dtype=np.float32)


def mean_relevance(relevances: Float32, weights: tuple[float, ...]) -> Float32:
    """Weighted mean of the relevances of a pair by the scorers that scored it: (S, P) with NaN for the others -> (P,).

    Where all of their weights are 0 it is the plain mean; 0 where no scorer scored the pair.
    """
    has = ~np.isnan(relevances)
    weight = np.asarray(weights, dtype=np.float64)[:, None] * has
    weight = np.where(weight.sum(axis=0) > 0, weight, has)
    total = (weight * np.where(has, relevances, 0)).sum(axis=0)
    return np.asarray(np.clip(total / np.maximum(weight.sum(axis=0), 1e-300), 0.0, 1.0), dtype=np.float32)


def last_scorer(logits: Float32) -> Int64:
    """The last scorer of a cascade that has a logit for each pair: (S, P) -> (P,), counted from 0, -1 for none."""
    numbers = np.arange(len(logits))[:, None]
    return np.asarray(np.where(np.isnan(logits), -1, numbers).max(axis=0), dtype=np.int64)


def cascade_order(query: Numbers, last: Int64, logit: Float32, document: Numbers) -> Int64:
    """A cascade's lists in order: by query, pairs of later scorers first, logit descending, doc_id: (P,) -> (P,)."""
    return np.lexsort((document, -logit, -last, query))


def log_odds(relevances: Float32) -> Float32:
    """ln(r / (1 − r)), within ±40: (P,) -> (P,). Relevances of an ensemble on the scale of logits less their bias."""
    inside = np.clip(relevances.astype(np.float64), 1e-17, 1 - 1e-16)
    return np.asarray(np.log(inside / (1 - inside)), dtype=np.float32)
