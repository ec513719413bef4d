"""The page's table of queries: those that reranking changes most, with their texts and ranks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from lakerank.evaluation.analysis.averages import DIMENSIONS
from lakerank.evaluation.evaluation import Evaluation
from lakerank.evaluation.metrics.measures import NAMES, PRIMARY

#: Queries of the table, at most.
MOST = 2000

#: Rank of the first relevant document, from 1, by its group.
RANK_GROUPS = ("1", "2–3", "4–10", "11 or below", "not in the list")


@dataclass(frozen=True, slots=True)
class QueryRow:
    """A judged query. Ranks are those of the first relevant document, None where a list has none."""

    query_id: str
    text: str
    labels: tuple[str, ...]
    candidates: int
    relevant: int
    relevant_candidates: int
    rank_before: int | None
    rank: int | None
    first_stage: float | None
    reranked: float
    change: float
    baseline: float | None
    ceiling: float | None


def query_rows(evaluation: Evaluation, texts: Callable[[Collection[str]], Mapping[str, str]]) -> list[QueryRow]:
    """Rows of the queries with the largest losses and gains, all where there are no more than MOST, worst first.

    Args:
        texts: the texts of queries by id.
    """
    queries = evaluation.queries
    gain = queries.figures.gain
    order = np.argsort(gain, kind="stable")
    chosen = order if len(order) <= MOST else np.concatenate([order[: MOST // 2], order[-MOST // 2 :]])
    query_ids = queries.query_ids.take(chosen).to_pylist()
    labels = queries.labels.select([name for name in DIMENSIONS if name in queries.labels.column_names]).take(chosen)
    text_of = texts(set(query_ids))
    lists, column = queries.figures.lists, NAMES.index(PRIMARY)

    def of_list(name: str) -> list[float | None]:
        return lists[name][chosen, column].tolist() if name in lists else [None] * len(chosen)

    return [
        QueryRow(query_id, text_of.get(query_id, ""), tuple(filter(None, names.values())), *counts.values(), *figures)
        for query_id, names, counts, *figures in zip(
            query_ids, labels.to_pylist(), queries.counts.take(chosen).to_pylist(), of_list("first_stage"),
            of_list("reranked"), gain[chosen].tolist(), of_list("baseline"), of_list("ceiling"), strict=True,
        )
    ]  # fmt: skip


def rank_shifts(evaluation: Evaluation) -> list[list[int]]:
    """Queries by the group of their first relevant document's rank before (rows) and after (columns): RANK_GROUPS²."""
    size = len(RANK_GROUPS)
    before, after = (
        np.digitize(evaluation.queries.counts[name].fill_null(1 << 40).to_numpy(), [2, 4, 11, 1 << 40])
        for name in ("first_relevant_before", "first_relevant")
    )
    relevant = evaluation.queries.counts["relevant"].to_numpy() > 0
    return np.bincount((before * size + after)[relevant], minlength=size**2).reshape(size, size).tolist()
