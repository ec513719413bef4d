"""Figures over all queries and over slices of them: by task, language, and whatever else the queries table says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lakerank.evaluation.metrics.bootstrap import query_hashes
from lakerank.evaluation.metrics.lists import QueryResult
from lakerank.evaluation.metrics.measures import CHANCE, NAMES
from lakerank.evaluation.metrics.sums import Difference, Figures, Sums

#: Columns of the queries table that make slices, in the order they are shown.
DIMENSIONS = ("dataset", "task", "slice", "language")

#: Derived for every lake: what the query holds → what its candidates hold.
MODALITY = "modality"

TASK_AND_SLICE = "task · slice"

ALL = "all"

#: A column with more values than this says what each query is, not what kind it is of: it makes no slices.
MOST_VALUES = 250


@dataclass(frozen=True, slots=True)
class Slice:
    """Mean figures over some queries. `gain` is the difference of each measure to the first stage, `against_gain` that
    to the other run; `intervals` are the run's own.
    """

    dimension: str
    value: str
    queries: int
    first_stage: Mapping[str, float] | None
    reranked: Mapping[str, float]
    chance: Mapping[str, float]
    gain: Mapping[str, Difference]
    intervals: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    against: Mapping[str, float] | None = None
    against_gain: Mapping[str, Difference] = field(default_factory=dict)


def of_sums(sums: Sums, ordered: bool, dimension: str = ALL, value: str = ALL) -> Slice:
    """The figures that sums come to. `ordered`: the first stage has an order, and so has figures."""
    return Slice(
        dimension,
        value,
        int(sums.queries),
        sums.means(1) if ordered else None,
        sums.means(0),
        sums.chance_means(),
        sums.differences(1) if ordered else {},
        sums.intervals(0),
        sums.means(2) if sums.has_against else None,
        sums.differences(2) if sums.has_against else {},
    )


def summarise(results: Sequence[QueryResult], dimension: str = ALL, value: str = ALL) -> Slice:
    """Mean figures of at least one query; the gain of every measure when the first stage has an order."""
    ordered = all(result.first_stage is not None for result in results)
    reranked = _table([result.reranked for result in results], NAMES)
    first = _table([result.first_stage or {} for result in results], NAMES) if ordered else np.zeros_like(reranked)
    figures = Figures(first, reranked, _table([result.chance for result in results], CHANCE))
    sums = Sums.over(figures, query_hashes([result.query_id for result in results]))
    return of_sums(sums, ordered, dimension, value)


def _table(figures: Iterable[Mapping[str, float]], names: Sequence[str]) -> np.ndarray:
    return np.array([[one[name] for name in names] for one in figures], np.float64).reshape(-1, len(names))


def slice_keys(
    labels: Mapping[str, str], modality: str, dimensions: Sequence[str] = DIMENSIONS
) -> list[tuple[str, str]]:
    """The (dimension, value) of every slice that a query is in."""
    keys = [(ALL, ALL), (MODALITY, modality)]
    keys += [(name, labels[name]) for name in dimensions if name in labels]
    if {"task", "slice"} <= set(dimensions) and "task" in labels and "slice" in labels:
        keys.append((TASK_AND_SLICE, f"{labels['task']} · {labels['slice']}"))
    return keys


def telling(slices: Sequence[Slice]) -> list[Slice]:
    """Slices of the dimensions that say something, in order.

    A dimension with a single value says nothing, and neither does the modality where it says just what the task says.
    """
    found = []
    for dimension in (*DIMENSIONS, MODALITY, TASK_AND_SLICE):
        mine = sorted((one for one in slices if one.dimension == dimension), key=lambda one: one.value)
        if len(mine) > 1 and not (dimension == MODALITY and _says_the_task(mine, slices)):
            found += mine
    return found


def _says_the_task(modalities: Sequence[Slice], slices: Sequence[Slice]) -> bool:
    tasks = {one.value: one.queries for one in slices if one.dimension == "task"}
    return {one.value: one.queries for one in modalities} == tasks


def by_size(slices: Sequence[Slice], dimension: str) -> list[Slice]:
    """The slices of a dimension, most queries first."""
    return sorted((one for one in slices if one.dimension == dimension), key=lambda one: (-one.queries, one.value))
