"""Interleaved rounds: every contender scores the same inputs in turn, and the order turns with the rounds."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from lakerank.records import DocumentGroup
from lakerank_benchmark.contenders import CannotRun, Contender, Run
from lakerank_benchmark.request import CROSS_ENCODER, FAST, PUBLISHED, REPRODUCIBLE
from lakerank_benchmark.workloads import Workload, evenly_spaced, scorable

logger = logging.getLogger(__name__)

#: Pairs that the published loop puts into one forward.
BATCH = 8

#: Documents of a run: of workloads whose documents differ so many at least, and of all so many at most.
LEAST = {"skewed": 8, "mixed": 6}
MOST = 256

#: Contenders that cost the same a pair whatever k is, and that a bad row stops: they get good rows, and not all.
_PAIRWISE = frozenset({PUBLISHED, CROSS_ENCODER})

#: A document's own share of a whole pair, below which nothing is shared by its queries.
SHARED = 0.05


@dataclass(frozen=True, slots=True)
class Sizes:
    """Documents of a cell's inputs, and how many of their pairs the published loop is given: its pace is by pair."""

    documents: int
    published_pairs: int


@dataclass(frozen=True, slots=True)
class Pace:
    """What a warm-up showed of a workload: seconds of a whole pair, and a document's operations over a whole pair's.

    A document with k queries costs `document + k * query` times a whole pair.
    """

    pair_seconds: float
    document: float
    query: float


@dataclass(frozen=True, slots=True)
class Cell:
    """A workload at k queries a document: each contender's runs, or why there are none."""

    workload: str
    k: int
    sizes: Sizes
    runs: Mapping[str, Sequence[Run]]
    absent: Mapping[str, str]


def warm_up(workload: Workload, contenders: Mapping[str, Contender], salts: Iterator[int]) -> Pace:
    """Run every contender once on a little of a workload, ours twice; each run takes a salt of its own."""

    def groups(k: int) -> list[DocumentGroup]:
        return workload.groups(documents, k, next(salts))

    documents = 3 if workload.name in LEAST else 1
    ours = next(name for name in (REPRODUCIBLE, FAST) if name in contenders)
    first = contenders[ours].run(groups(1))
    for name, contender in contenders.items():
        if name not in (ours, PUBLISHED):
            _attempt(contender, groups(1))
    second = contenders[ours].run(groups(2))
    if PUBLISHED not in contenders:
        query = second.flops / first.flops - 1
        return Pace(second.seconds / documents, max(0.0, 1 - query), max(0.0, query))
    pairwise = contenders[PUBLISHED].run(scorable(groups(1)))
    suffix = (second.flops - first.flops) / pairwise.flops
    return Pace(pairwise.seconds / pairwise.pairs, first.flops / pairwise.flops - suffix, suffix)


def size(workload: str, k: int, pace: Pace, seconds: float, most: int = MOST) -> Sizes:
    """Inputs whose run takes about `seconds`, for the published loop and for us alike."""
    each = pace.pair_seconds * (max(pace.document, 0.0) + k * pace.query)
    documents = min(most, max(LEAST.get(workload, 1), round(seconds / each)))
    if k == 1 or pace.document < SHARED:  # a pair costs us no less than it does them
        return Sizes(documents, documents * k)
    pairs = max(2, round(seconds / pace.pair_seconds))
    if workload in LEAST:  # documents differ: as many pairs of each
        return Sizes(documents, documents * min(k, max(1, pairs // documents)))
    whole = pairs // BATCH * BATCH if pairs >= BATCH else pairs
    return Sizes(documents, min(whole, documents * k))


def measure(
    workload: Workload, k: int, sizes: Sizes, contenders: Mapping[str, Contender], repeats: int, salts: Iterator[int]
) -> Cell:
    """Time a cell: `repeats` rounds, in each every contender once."""
    runs: dict[str, list[Run]] = {name: [] for name in contenders}
    absent: dict[str, str] = {}
    names = list(contenders)
    for turn in range(repeats):
        groups = workload.groups(sizes.documents, k, next(salts))
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            sample = evenly_spaced(scorable(groups), sizes.published_pairs) if name in _PAIRWISE else groups
            run = _attempt(contenders[name], sample)
            if isinstance(run, str):
                absent[name] = run
            else:
                runs[name].append(run)
    cell = Cell(workload.name, k, sizes, {name: rounds for name, rounds in runs.items() if rounds}, absent)
    paces = {name: median(run.pairs / run.seconds for run in rounds) for name, rounds in cell.runs.items()}
    listed = ", ".join(f"{name} {pace:.3g}" for name, pace in paces.items())
    logger.info("%s, k = %d, %d documents, pairs/s: %s", workload.name, k, sizes.documents, listed)
    return cell


def _attempt(contender: Contender, groups: Sequence[DocumentGroup]) -> Run | str:
    """A run, or why this contender makes none."""
    try:
        return contender.run(groups)
    except CannotRun as error:
        return str(error)
