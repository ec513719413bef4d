"""From runs to figures: medians, ratios, shares of wall time, what the arithmetic had predicted, and drift."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from lakerank_benchmark.contenders import Run
from lakerank_benchmark.request import FAST, PUBLISHED, REPRODUCIBLE
from lakerank_benchmark.rounds import Cell

Logits = Mapping[tuple[str, str], float]

#: Depth of a list that drift is looked for in.
TOP = 10


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


@dataclass(frozen=True, slots=True)
class Drift:
    """Largest and median |Δlogit| over pairs; of so many lists, in how many the top 10 hold other documents, and in
    how many they stand in another order; `spread` is the standard deviation of float32's logits within a list.
    """

    contender: str
    pairs: int
    largest: float
    median: float
    spread: float
    lists: int
    other_sets: int
    other_orders: int


def figures(cell: Cell, ceiling: float) -> list[Figure | Absent]:
    """A figure for each contender of a cell, in their order. `ceiling`: operations a second at most."""
    absent = [Absent(cell.workload, cell.k, name, why) for name, why in cell.absent.items()]
    return [*(_figure(cell, name, ceiling) for name in cell.runs), *absent]


def _figure(cell: Cell, name: str, ceiling: float) -> Figure:
    runs = cell.runs[name]
    paces = [run.pairs / run.seconds for run in runs]
    pace, seconds = median(paces), sum(run.seconds for run in runs)
    ratio, over_fast = (_by_round(paces, cell.runs.get(other, ())) for other in (PUBLISHED, FAST))
    pairs, tokens = sum(run.pairs for run in runs), sum(run.tokens for run in runs)
    achieved = median(run.flops / run.seconds for run in runs)
    stages = sorted({stage for run in runs for stage in run.stages})
    return Figure(
        workload=cell.workload,
        k=cell.k,
        contender=name,
        documents=cell.sizes.documents,
        pairs=runs[0].pairs,
        runs=len(runs),
        seconds=median(run.seconds for run in runs),
        pairs_per_second=pace,
        spread=(max(paces) - min(paces)) / pace,
        ratio=ratio,
        over_fast=None if over_fast is None or name != REPRODUCIBLE else 1 / over_fast - 1,
        tokens_per_pair=tokens / pairs,
        padding=sum(run.padding for run in runs) / tokens if tokens else 0.0,
        gflop_per_pair=sum(run.flops for run in runs) / pairs / 1e9,
        gflops=achieved / 1e9,
        mfu=achieved / ceiling,
        shares={stage: sum(run.stages.get(stage, 0.0) for run in runs) / seconds for stage in stages},
    )


def _by_round(paces: Sequence[float], others: Sequence[Run]) -> float | None:
    """Median of paces over another contender's in the same rounds; None where it did not run in all."""
    if len(others) != len(paces):
        return None
    return median(pace * other.seconds / other.pairs for pace, other in zip(paces, others, strict=True))


def predictions(results: Sequence[Figure | Absent]) -> list[Prediction]:
    """One for each cell that we ran in, in order."""
    by_cell = {(figure.contender, figure.workload, figure.k): figure for figure in ran(results)}
    predicted = []
    for ours in ran(results, REPRODUCIBLE):
        first = min(
            (other for other in ran(results, REPRODUCIBLE) if other.workload == ours.workload),
            key=lambda figure: figure.k,
        )
        published = by_cell.get((PUBLISHED, ours.workload, ours.k))
        ratio = published.gflop_per_pair / ours.gflop_per_pair if published and ours.gflop_per_pair else None
        milliseconds = 1000 * ours.gflop_per_pair / first.gflops if first.gflops else 0.0
        measured = 1000 / ours.pairs_per_second
        predicted.append(Prediction(ours.workload, ours.k, ratio, ours.ratio, milliseconds, measured, ours.over_fast))
    return predicted


def ran(results: Sequence[Figure | Absent], contender: str | None = None) -> list[Figure]:
    """The figures, of one contender where it is named, without those that are absent."""
    return [figure for figure in results if isinstance(figure, Figure) and contender in (None, figure.contender)]


def drift(contender: str, logits: Logits, float32: Logits) -> Drift:
    """Compare the logits of the same pairs with those in float32."""
    pairs = sorted(logits.keys() & float32.keys())
    differences = np.array([abs(logits[pair] - float32[pair]) for pair in pairs])
    lists: dict[str, list[str]] = defaultdict(list)
    for query, document in pairs:
        lists[query].append(document)
    tops = [(_top(query, documents, logits), _top(query, documents, float32)) for query, documents in lists.items()]
    spreads = [np.std([float32[query, document] for document in documents]) for query, documents in lists.items()]
    return Drift(
        contender,
        len(pairs),
        largest=float(differences.max()),
        median=float(np.median(differences)),
        spread=float(np.mean(spreads)),
        lists=len(lists),
        other_sets=sum(set(top) != set(exact) for top, exact in tops),
        other_orders=sum(top != exact for top, exact in tops),
    )


def _top(query: str, documents: list[str], logits: Logits) -> list[str]:
    return sorted(documents, key=lambda document: (-logits[query, document], document))[:TOP]
