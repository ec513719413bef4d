"""From runs to figures: medians, spreads, ratios, shares of wall time, and what the arithmetic had predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from lakerank_benchmark.contenders import FAST, PUBLISHED, REPRODUCIBLE
from lakerank_benchmark.rounds import Cell
from lakerank_benchmark.runs import Run


@dataclass(frozen=True, slots=True)
class Figure:
    """What a contender did in a cell; medians over its runs.

    `spread` is the largest pace less the smallest, over the median. `ratio` is to the published loop's pace, round by
    round where both ran; `over_fast` is our seconds over the fast mode's likewise, less one. `mfu` is needed operations
    a second over the ceiling. `shares` are of wall time; `decode` and `tokenise` are processor time ahead of the
    device, and so may overlap the others.
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
    over_fast: float | None
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
    in operations a second, of the workload's smallest k: what should follow as k grows. `reproducible_costs` is
    what the reproducible mode takes more than the fast one.
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
    found: list[Figure | Absent] = [_figure(cell, name, ceiling) for name in cell.runs]
    return found + [Absent(cell.workload, cell.k, name, why) for name, why in cell.cannot.items()]


def predictions(found: Sequence[Figure | Absent]) -> list[Prediction]:
    """One for each cell that we ran in, in order."""
    ran = {(one.contender, one.workload, one.k): one for one in found if isinstance(one, Figure)}
    ours = [one for (contender, *_), one in ran.items() if contender == REPRODUCIBLE]
    first: dict[str, Figure] = {}
    for one in sorted(ours, key=lambda figure: figure.k):
        first.setdefault(one.workload, one)
    return [_prediction(one, ran.get((PUBLISHED, one.workload, one.k)), first[one.workload]) for one in ours]


def _prediction(ours: Figure, published: Figure | None, first: Figure) -> Prediction:
    return Prediction(
        ours.workload,
        ours.k,
        published.gflop_per_pair / ours.gflop_per_pair if published and ours.gflop_per_pair else None,
        ours.ratio,
        1000 * ours.gflop_per_pair / first.gflops if first.gflops else 0.0,
        1000 / ours.pairs_per_second,
        ours.over_fast,
    )


def _figure(cell: Cell, name: str, ceiling: float) -> Figure:
    runs = cell.runs[name]
    paces = [run.pairs / run.seconds for run in runs]
    pace, seconds = median(paces), sum(run.seconds for run in runs)
    ratio, over_fast = (_by_round(paces, cell.runs.get(other, ())) for other in (PUBLISHED, FAST))
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
        ratio,
        None if over_fast is None or name != REPRODUCIBLE else 1 / over_fast - 1,
        tokens / pairs,
        sum(run.padding for run in runs) / tokens if tokens else 0.0,
        flops / pairs / 1e9,
        achieved / 1e9,
        achieved / ceiling,
        {stage: sum(run.stages.get(stage, 0.0) for run in runs) / seconds for stage in stages},
    )


def _by_round(paces: Sequence[float], others: Sequence[Run]) -> float | None:
    """Median of paces over another contender's in the same rounds; None where it did not run in all."""
    if len(others) != len(paces):
        return None
    return median(pace * other.seconds / other.pairs for pace, other in zip(paces, others, strict=True))
