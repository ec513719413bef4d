"""The measures, and their figures from the places at which judged documents stand: all that a measure looks at."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pytrec_eval
from ir_measures import AP, RR, Judged, R, Success, nDCG

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: The measures and the names they are shown under, in order. Gains are linear and cut-offs as in trec_eval.
MEASURES = {
    nDCG @ 5: "nDCG@5",
    nDCG @ 10: "nDCG@10",
    R @ 10: "Recall@10",
    R @ 100: "Recall@100",
    RR @ 10: "RR@10",
    AP: "AP",
    Success @ 5: "Success@5",
    Success @ 10: "Success@10",
    Judged @ 10: "Judged@10",
}
NAMES = tuple(MEASURES.values())

#: The measure that everything is headed and sorted by, and the one beside it.
PRIMARY = "nDCG@10"
SECONDARY = "Recall@10"

#: What a random order is figured out for.
CHANCE = ("nDCG@5", "nDCG@10", "Recall@10", "Recall@100")

#: What trec_eval calls those that it computes. RR@10 is its reciprocal rank of the first ten documents.
_TREC_EVAL = {
    "nDCG@5": "ndcg_cut_5",
    "nDCG@10": "ndcg_cut_10",
    "Recall@10": "recall_10",
    "Recall@100": "recall_100",
    "AP": "map",
    "Success@5": "success_5",
    "Success@10": "success_10",
}
_ASKED = {"ndcg_cut.5,10", "recall.10,100", "map", "success.5,10", "recip_rank"}

#: Queries handed to trec_eval at once.
_QUERIES = 20_000


def figures(lengths: Sequence[int] | Ints, query: Ints, place: Ints, relevance: Ints) -> Floats:
    """Figures of Q lists, (Q, len(MEASURES)): those of ir_measures, from trec_eval's own code.

    A list is known by its length and by where its judged documents stand. Documents are handed over named by their
    places, as falling scores, so no tie is left for trec_eval to break by name. A judgement below 0 is handed over as
    0. A list without documents scores 0, as `trec_eval -c` has it.

    ir_measures itself takes four times as long, over one Python object a figure; the tests hold both equal.

    Args:
        lengths: (Q,) documents in each list.
        query: (J,) the list, 0 ≤ query < Q, that each judgement is for, ascending.
        place: (J,) where the judged document stands in it, from 0; -1 where it does not.
        relevance: (J,) the judgement.
    """
    lengths = np.asarray(lengths, np.int64)
    found = np.zeros((len(lengths), len(MEASURES)))
    for first in range(0, len(lengths), _QUERIES):
        last = min(first + _QUERIES, len(lengths))
        mine = slice(*np.searchsorted(query, [first, last]))
        _fill(found, range(first, last), lengths, query[mine], place[mine], relevance[mine])
    in_ten = np.bincount(query[(place >= 0) & (place < 10)], minlength=len(lengths))
    found[:, NAMES.index("Judged@10")] = _over(in_ten, np.minimum(lengths, 10))
    return found


def _fill(found: Floats, queries: range, lengths: Ints, query: Ints, place: Ints, relevance: Ints) -> None:
    """Fill in what trec_eval computes, for the lists of some queries."""
    judgements: dict[str, dict[str, int]] = {str(number): {} for number in queries}
    first = np.full(len(lengths), np.iinfo(np.int64).max)
    np.minimum.at(first, query[(relevance > 0) & (place >= 0)], place[(relevance > 0) & (place >= 0)])
    judged = zip(query.tolist(), place.tolist(), relevance.tolist(), strict=True)
    for count, (number, where, grade) in enumerate(judged):
        judgements[str(number)][str(where) if where >= 0 else f"absent {count}"] = max(grade, 0)
    run = {str(number): _documents(int(lengths[number])) for number in queries if lengths[number]}
    columns = [(NAMES.index(name), theirs) for name, theirs in _TREC_EVAL.items()]
    reciprocal = NAMES.index("RR@10")
    for name, figures_of in pytrec_eval.RelevanceEvaluator(judgements, _ASKED).evaluate(run).items():
        row = found[int(name)]
        for column, theirs in columns:
            row[column] = figures_of[theirs]
        row[reciprocal] = figures_of["recip_rank"] if first[int(name)] < 10 else 0.0


@lru_cache(maxsize=4096)
def _documents(length: int) -> dict[str, float]:
    """A list of documents named by their places, as a run: shared by all lists of one length."""
    return {str(place): float(-place) for place in range(length)}


def chance(candidates: Ints, query: Ints, relevance: Ints, is_candidate: npt.NDArray[np.bool_]) -> Floats:
    """What a random order of the same candidates scores on average, exactly: (Q, len(CHANCE)).

    Every candidate is equally likely at every place, so the expected gain at each is the mean gain of the candidates,
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
    discount = 1 / np.log2(np.arange(len(query)) - starts[query] + 2)  # of each judgement at its ideal place
    gained = np.bincount(query, gain * is_candidate, queries)
    relevant = np.bincount(query, (gain > 0) & is_candidate, queries)
    all_relevant = np.bincount(query, gain > 0, queries)
    columns = []
    for depth in (5, 10):
        shown = np.where(discount >= 1 / np.log2(depth + 1) - 1e-12, discount, 0)
        ideal = np.bincount(query[order], gain[order] * shown, queries)
        sums = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(depth) + 2))])
        expected = _over(gained, candidates) * sums[np.minimum(candidates, depth)]
        columns.append(_over(expected, ideal))
    columns += [_over(_over(np.minimum(candidates, depth), candidates) * relevant, all_relevant) for depth in (10, 100)]
    return np.stack(columns, axis=1)


def _over(part: npt.NDArray[np.generic], whole: npt.NDArray[np.generic]) -> Floats:
    """part / whole, 0 where there is nothing to divide by."""
    parts = np.asarray(part, np.float64)
    result: Floats = np.divide(parts, whole, out=np.zeros_like(parts), where=np.asarray(whole) != 0)
    return result
