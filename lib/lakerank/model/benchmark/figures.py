"""From runs to figures: medians, spreads, ratios, shares of wall time, and what the arithmetic had predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from lakerank.model.benchmark.contenders import FAST, PUBLISHED, REPRODUCIBLE
from lakerank.model.benchmark.rounds import Cell
from lakerank.model.benchmark.runs import Run


@dataclass(frozen=True, slots=True)
class Figure:
    """What a contender did in a cell; medians over its runs.

    `spread` is the largest pace less the smallest, over the median. `ratio` is to the published loop's pace, round by
    round where both ran. `mfu` is needed operations a second over the ceiling. `shares` are of wall time; `decode` and
    `tokenise` are processor time ahead of the device, and so may overlap the others.
    """

    workload: str
    k: int
    contender: str
    documents: int
    pairs: int
    runs: int
    seconds: float
    pairs_per_second: float
    spread: float
    ratio: float | None
    tokens_per_pair: float
    padding: float
    gflop_per_pair: float
    gflops: float
    mfu: float
    shares: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Absent:
    """A contender that did not run in a cell, and why."""

    workload: str
    k: int
    contender: str
    why: str


@dataclass(frozen=True, slots=True)
class Prediction:
    """What operations alone say of a cell, beside what was measured.

    `predicted_ratio` is the published loop's operations a pair over ours. `predicted_ms` is ours a pair at the pace,
    in operations a second, of the workload's smallest k: what should follow as k grows. `reproducible_costs` is our
    seconds a pair over the fast mode's, less one.
    """

    workload: str
    k: int
    predicted_ratio: float | None
    ratio: float | None
    predicted_ms: float
    ms: float
    reproducible_costs: float | None


def figures(cell: Cell, ceiling: float) -> list[Figure | Absent]:
    """A figure for each contender of a cell, in their order."""
    published = cell.runs.get(PUBLISHED, ())
    found: list[Figure | Absent] = [_figure(cell, name, runs, published, ceiling) for name, runs in cell.runs.items()]
    return found + [Absent(cell.workload, cell.k, name, why) for name, why in cell.cannot.items()]


def predictions(found: Sequence[Figure | Absent]) -> list[Prediction]:
    """One for each cell that we ran in, in order."""
    ran = {(one.contender, one.workload, one.k): one for one in found if isinstance(one, Figure)}
    ours = [one for (contender, *_), one in ran.items() if contender == REPRODUCIBLE]
    first: dict[str, Figure] = {}
    for one in sorted(ours, key=lambda figure: figure.k):
        first.setdefault(one.workload, one)
    others = [(ran.get((PUBLISHED, one.workload, one.k)), ran.get((FAST, one.workload, one.k))) for one in ours]
    return [_prediction(one, *other, first[one.workload]) for one, other in zip(ours, others, strict=True)]


def _prediction(ours: Figure, published: Figure | None, fast: Figure | None, first: Figure) -> Prediction:
    return Prediction(
        ours.workload,
        ours.k,
        published.gflop_per_pair / ours.gflop_per_pair if published and ours.gflop_per_pair else None,
        ours.ratio,
        1000 * ours.gflop_per_pair / first.gflops if first.gflops else 0.0,
        1000 / ours.pairs_per_second,
        fast.pairs_per_second / ours.pairs_per_second - 1 if fast else None,
    )


def _figure(cell: Cell, name: str, runs: Sequence[Run], published: Sequence[Run], ceiling: float) -> Figure:
    paces = [run.pairs / run.seconds for run in runs]
    pace, seconds = median(paces), sum(run.seconds for run in runs)
    ratios = [pace / (base.pairs / base.seconds) for pace, base in zip(paces, published, strict=False)]
    pairs, tokens = sum(run.pairs for run in runs), sum(run.tokens for run in runs)
    flops = sum(run.flops for run in runs)
    achieved = median(run.flops / run.seconds for run in runs)
    stages = sorted({stage for run in runs for stage in run.stages})
    return Figure(
        cell.workload,
        cell.k,
        name,
        cell.sizes.documents,
        runs[0].pairs,
        len(runs),
        median(run.seconds for run in runs),
        pace,
        (max(paces) - min(paces)) / pace,
        median(ratios) if ratios else None,
        tokens / pairs,
        sum(run.padding for run in runs) / tokens if tokens else 0.0,
        flops / pairs / 1e9,
        achieved / 1e9,
        achieved / ceiling,
        {stage: sum(run.stages.get(stage, 0.0) for run in runs) / seconds for stage in stages},
    )
