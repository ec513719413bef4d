"""Figures over all queries and over slices of them: by task, language, and whatever else the queries table says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lakerank.evaluation.intervals import Difference, paired_differences
from lakerank.evaluation.lists import QueryResult

#: Columns of the queries table that make slices, in the order they are shown.
DIMENSIONS = ("task", "slice", "language")

#: Derived for every lake: what the query holds → what its candidates hold.
MODALITY = "modality"


@dataclass(frozen=True, slots=True)
class Slice:
    """Mean figures over some queries. `gain` is the difference of each measure to the first stage."""

    dimension: str
    value: str
    queries: int
    first_stage: Mapping[str, float] | None
    reranked: Mapping[str, float]
    chance: Mapping[str, float]
    gain: Mapping[str, Difference]


def summarise(results: Sequence[QueryResult], dimension: str = "all", value: str = "all") -> Slice:
    """Mean figures of at least one query; the gain of every measure when the first stage has an order."""
    first = [result.first_stage for result in results if result.first_stage is not None]
    reranked = [result.reranked for result in results]
    gain = _gains(first, reranked) if len(first) == len(results) else {}
    return Slice(
        dimension,
        value,
        len(results),
        _means(first) if gain else None,
        _means(reranked),
        _means([result.chance for result in results]),
        gain,
    )


def _gains(before: Sequence[Mapping[str, float]], after: Sequence[Mapping[str, float]]) -> dict[str, Difference]:
    names = list(after[0])
    tables = ([[one[name] for name in names] for one in figures] for figures in (before, after))
    return dict(zip(names, paired_differences(*map(np.array, tables)), strict=True))


def slice_results(results: Sequence[QueryResult], labels: Mapping[str, Mapping[str, str]]) -> list[Slice]:
    """A slice for every value of every dimension, and for every pair of task and slice.

    `labels` gives a query's value of each dimension it has. A dimension with a single value says nothing and is left
    out, and so is the modality where it says just what the task says.
    """
    slices = []
    for dimension in (*DIMENSIONS, MODALITY, "task · slice"):
        groups = defaultdict(list)
        for result in results:
            value = _value(labels.get(result.query_id, {}), dimension)
            if value is not None:
                groups[value].append(result)
        if len(groups) > 1 and not (dimension == MODALITY and _says_the_task(labels)):
            slices += [summarise(groups[value], dimension, value) for value in sorted(groups)]
    return slices


def _value(labels: Mapping[str, str], dimension: str) -> str | None:
    if dimension != "task · slice":
        return labels.get(dimension)
    return f"{labels['task']} · {labels['slice']}" if "task" in labels and "slice" in labels else None


def _says_the_task(labels: Mapping[str, Mapping[str, str]]) -> bool:
    return all(label.get("task") == label.get(MODALITY) for label in labels.values())


def _means(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(one[name] for one in figures) / len(figures) for name in figures[0]} if figures else {}


def by_size(slices: Sequence[Slice], dimension: str) -> list[Slice]:
    """The slices of a dimension, most queries first."""
    return sorted((one for one in slices if one.dimension == dimension), key=lambda one: (-one.queries, one.value))
