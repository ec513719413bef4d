"""One query's lists, and how good they are: the unit of evaluation, pure, so that it may run anywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ir_measures
from ir_measures import AP, RR, Judged, R, nDCG

#: The measures and the names they are shown under, in order. Gains are linear and cut-offs as in trec_eval.
MEASURES = {
    nDCG @ 5: "nDCG@5",
    nDCG @ 10: "nDCG@10",
    R @ 10: "Recall@10",
    R @ 100: "Recall@100",
    RR @ 10: "RR@10",
    AP: "AP",
    Judged @ 10: "Judged@10",
}

#: The measure that everything is headed and sorted by, and the one beside it.
PRIMARY = "nDCG@10"
SECONDARY = "Recall@10"


@dataclass(frozen=True, slots=True)
class QueryLists:
    """What is known of a query: its candidates as the first stage orders them, its reranked list, its judgements.

    A candidate that was rejected, or lies beyond the ranking depth, is missing from `reranked`: it counts as not found.
    """

    query_id: str
    candidates: tuple[str, ...]
    reranked: tuple[str, ...]
    judgements: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class QueryResult:
    """A query's figures by measure. `first_stage` is None when the candidates have no order."""

    query_id: str
    first_stage: Mapping[str, float] | None
    reranked: Mapping[str, float]
    chance: Mapping[str, float]

    @property
    def gain(self) -> float:
        """Change of the primary measure over the first stage (over chance, when there is none)."""
        return self.reranked[PRIMARY] - (self.first_stage or self.chance)[PRIMARY]


def measure(lists: Sequence[QueryLists], ordered: bool = True) -> list[QueryResult]:
    """The figures of each query, in order; queries are independent of one another.

    A query without judgements must not be here; one without results gets 0, as trec_eval -c has it. `ordered` says
    whether the candidates stand in an order of the first stage's.
    """
    judgements = {one.query_id: dict(one.judgements) for one in lists}
    reranked = _figures(judgements, {one.query_id: one.reranked for one in lists})
    first = _figures(judgements, {one.query_id: one.candidates for one in lists}) if ordered else {}
    return [QueryResult(one.query_id, first.get(one.query_id), reranked[one.query_id], chance(one)) for one in lists]


def _figures(
    judgements: Mapping[str, Mapping[str, int]], lists: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, float]]:
    # trec_eval sorts by score: ranks are handed over as falling scores, so that no tie is left for it to break.
    # Queries without results are left out: Judged@10 would divide by their length.
    run = {query: {doc: float(-rank) for rank, doc in enumerate(docs)} for query, docs in lists.items() if docs}
    found = {query: dict.fromkeys(MEASURES.values(), 0.0) for query in judgements}
    for figure in ir_measures.iter_calc(list(MEASURES), judgements, run):
        found[figure.query_id][MEASURES[figure.measure]] = float(figure.value)
    return found


def chance(one: QueryLists) -> dict[str, float]:
    """What a random order of the same candidates scores on average, exactly: nDCG@5, nDCG@10, Recall@10, Recall@100.

    Every candidate is equally likely at every position, so the expected gain at each is the mean gain of the
    candidates, and E[DCG@k] = mean gain × Σ_{i ≤ min(k, n)} 1 / log2(i + 1). The ideal DCG is that of all judgements.
    """
    gains = [max(0, one.judgements.get(doc, 0)) for doc in one.candidates]
    relevant = sum(gain > 0 for gain in gains)
    all_relevant = sum(relevance > 0 for relevance in one.judgements.values())
    count = len(gains)
    figures = {}
    for depth in (5, 10):
        ideal = _dcg(sorted(one.judgements.values(), reverse=True)[:depth])
        expected = sum(gains) / count * _dcg([1] * min(depth, count)) if count else 0.0
        figures[f"nDCG@{depth}"] = expected / ideal if ideal else 0.0
    for depth in (10, 100):
        seen = min(depth, count) / count * relevant if count else 0.0
        figures[f"Recall@{depth}"] = seen / all_relevant if all_relevant else 0.0
    return figures


def _dcg(gains: Sequence[int]) -> float:
    return sum(max(0, gain) / math.log2(position + 1) for position, gain in enumerate(gains, start=1))
