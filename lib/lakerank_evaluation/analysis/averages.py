"""Means over queries, over all and over slices of the lake."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lakerank_evaluation.metrics.bootstrap import Difference, Interval, Summary

#: Columns of the queries table that make slices, in the order they are shown.
DIMENSIONS = ("dataset", "task", "slice", "language")

#: Derived for every lake: modality of the query → modality of its candidates.
MODALITY = "modality"

TASK_AND_SLICE = "task · slice"

ALL = "all"

#: A column with more values identifies queries rather than kinds of queries: it makes no slices.
MOST_VALUES = 250


#: Summaries of queries with the values of some of their columns.
Summaries = Iterable[tuple[tuple[str, ...], Summary]]


@dataclass(frozen=True, slots=True)
class Slice:
    """Mean figures over some queries. `gain` is the difference of each measure to the first stage, `baseline_gain` that
    to the baseline run, `random` the random baseline, `ceiling` the best order of the candidates; `intervals` are those
    of `reranked`, `first_intervals` those of `first_stage`.
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
    first_intervals: Mapping[str, Interval] = field(default_factory=dict)
    ceiling: Mapping[str, float] | None = None

    @classmethod
    def of(cls, summary: Summary, dimension: str = ALL, value: str = ALL) -> Slice:
        (first, gain), (baseline, baseline_gain) = (
            (summary.means(name), summary.differences(name)) if name in summary else (None, {})
            for name in ("first_stage", "baseline")
        )
        means, random, intervals = summary.means("reranked"), summary.random_means(), summary.intervals("reranked")
        return cls(
            dimension, value, summary.queries, first, means, random, gain, intervals, baseline, baseline_gain,
            summary.intervals("first_stage") if first else {},
            summary.means("ceiling") if "ceiling" in summary else None,
        )  # fmt: skip


def slices(summaries: Callable[[Sequence[str]], Summaries], dimensions: Sequence[str]) -> list[Slice]:
    """Slices of the dimensions that distinguish queries, in order; `summaries` are by the values of some columns.

    Left out are dimensions with a single value, and the modality where it divides queries just as the task does.
    """
    columns = {name: [name] for name in (*dimensions, MODALITY)}
    if {"task", "slice"} <= set(dimensions):
        columns[TASK_AND_SLICE] = ["task", "slice"]
    chosen: list[Slice] = []
    tasks: dict[str, int] = {}
    for dimension, names in columns.items():
        parts = [Slice.of(summary, dimension, " · ".join(values)) for values, summary in summaries(names)]
        sizes = {part.value: part.queries for part in parts}
        if len(parts) > 1 and not (dimension == MODALITY and sizes == tasks):
            chosen += sorted(parts, key=lambda part: part.value)
        tasks = sizes if dimension == "task" else tasks
    return chosen


def by_size(slices: Sequence[Slice], dimension: str) -> list[Slice]:
    """The slices of a dimension, most queries first."""
    parts = (part for part in slices if part.dimension == dimension)
    return sorted(parts, key=lambda part: (-part.queries, part.value))
