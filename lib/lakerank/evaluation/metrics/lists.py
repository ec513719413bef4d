"""One query's lists, and how good they are: for those who have lists in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lakerank.evaluation.metrics.measures import CHANCE, NAMES, PRIMARY, figures
from lakerank.evaluation.metrics.measures import chance as chance_figures


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
    reranked = _named([one.reranked for one in lists], lists)
    first = _named([one.candidates for one in lists], lists) if ordered else [None] * len(lists)
    return [
        QueryResult(one.query_id, before, after, chance(one))
        for one, before, after in zip(lists, first, reranked, strict=True)
    ]


def _named(shown: Sequence[Sequence[str]], lists: Sequence[QueryLists]) -> list[dict[str, float]]:
    places = [{doc: place for place, doc in enumerate(docs)} for docs in shown]
    judged = [
        (number, places[number].get(doc, -1), relevance)
        for number, one in enumerate(lists)
        for doc, relevance in one.judgements.items()
    ]
    query, place, relevance = np.array(judged, np.int64).reshape(-1, 3).T
    found = figures([len(docs) for docs in shown], query, place, relevance)
    return [dict(zip(NAMES, row, strict=True)) for row in found.tolist()]


def chance(one: QueryLists) -> dict[str, float]:
    """What a random order of the query's candidates scores on average."""
    candidates = set(one.candidates)
    relevance = np.array(list(one.judgements.values()), np.int64)
    is_candidate = np.array([doc in candidates for doc in one.judgements], bool)
    query = np.zeros(len(relevance), np.int64)
    found = chance_figures(np.array([len(one.candidates)]), query, relevance, is_candidate)
    return dict(zip(CHANCE, found[0].tolist(), strict=True))
