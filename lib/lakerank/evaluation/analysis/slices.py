"""Figures over all queries and over slices of them: by task, language, and other columns of the queries table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lakerank.evaluation.metrics.bootstrap import Difference, Interval, Summary

#: Columns of the queries table that make slices, in the order they are shown.
DIMENSIONS = ("dataset", "task", "slice", "language")

#: Derived for every lake: modality of the query → modality of its candidates.
MODALITY = "modality"

TASK_AND_SLICE = "task · slice"

ALL = "all"

#: A column with more values identifies queries rather than kinds of queries: it makes no slices.
MOST_VALUES = 250


@dataclass(frozen=True, slots=True)
class Slice:
    """Mean figures over some queries. `gain` is the difference of each measure to the first stage, `baseline_gain` that
    to the baseline run, `random` the random baseline; `intervals` are those of `reranked`.
    """

    dimension: str
    value: str
    queries: int
    first_stage: Mapping[str, float] | None
    reranked: Mapping[str, float]
    random: Mapping[str, float]
    gain: Mapping[str, Difference]
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    baseline: Mapping[str, float] | None = None
    baseline_gain: Mapping[str, Difference] = field(default_factory=dict)

    @classmethod
    def of(cls, summary: Summary, dimension: str = ALL, value: str = ALL) -> Slice:
        has_first, has_baseline = "first_stage" in summary, "baseline" in summary
        return cls(
            dimension,
            value,
            summary.queries,
            summary.means("first_stage") if has_first else None,
            summary.means("reranked"),
            summary.random_means(),
            summary.differences("first_stage") if has_first else {},
            summary.intervals(),
            summary.means("baseline") if has_baseline else None,
            summary.differences("baseline") if has_baseline else {},
        )


def informative(slices: Sequence[Slice]) -> list[Slice]:
    """Slices of the dimensions that distinguish queries, in order.

    Left out are dimensions with a single value, and the modality where it divides queries just as the task does.
    """
    chosen: list[Slice] = []
    tasks = {part.value: part.queries for part in slices if part.dimension == "task"}
    for dimension in (*DIMENSIONS, MODALITY, TASK_AND_SLICE):
        parts = sorted((part for part in slices if part.dimension == dimension), key=lambda part: part.value)
        repeats_task = dimension == MODALITY and {part.value: part.queries for part in parts} == tasks
        if len(parts) > 1 and not repeats_task:
            chosen += parts
    return chosen


def by_size(slices: Sequence[Slice], dimension: str) -> list[Slice]:
    """The slices of a dimension, most queries first."""
    parts = (part for part in slices if part.dimension == dimension)
    return sorted(parts, key=lambda part: (-part.queries, part.value))
