"""Interleaved rounds: every contender scores the same inputs in turn, and the order turns with the rounds."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from statistics import median

from lakerank.records import DocumentGroup
from lakerank_benchmark.contenders import CROSS_ENCODER, FAST, PUBLISHED, REPRODUCIBLE
from lakerank_benchmark.runs import CannotRun, Contender, Run
from lakerank_benchmark.workloads import Workload, scorable

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

#: Documents of a warm-up run; where they differ, several.
_WARM_UP = {"skewed": 3, "mixed": 3}


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
    cannot: Mapping[str, str]


class Stamps:
    """Numbers that no two inputs share, so that no cache holds what is timed."""

    def __init__(self) -> None:
        self._numbers = count(1)

    def next(self) -> int:
        """A number not given before."""
        return next(self._numbers)


def warm_up(workload: Workload, contenders: Mapping[str, Contender], stamps: Stamps) -> Pace:
    """Run every contender once on a little of a workload."""
    documents = _WARM_UP.get(workload.name, 1)
    ours = next(contenders[name] for name in (REPRODUCIBLE, FAST) if name in contenders)
    one = ours.run(workload.groups(documents, 1, stamps.next()))
    for name, contender in contenders.items():
        if name not in (ours.name, PUBLISHED):
            _tried(contender, workload.groups(documents, 1, stamps.next()))
    two = ours.run(workload.groups(documents, 2, stamps.next()))
    if PUBLISHED not in contenders:
        return Pace(two.seconds / documents, max(0.0, 2 - two.flops / one.flops), max(0.0, two.flops / one.flops - 1))
    pairwise = contenders[PUBLISHED].run(scorable(workload.groups(documents, 1, stamps.next())))
    suffix = (two.flops - one.flops) / pairwise.flops
    return Pace(pairwise.seconds / pairwise.pairs, one.flops / pairwise.flops - suffix, suffix)


def size(workload: str, k: int, pace: Pace, seconds: float, most: int = MOST) -> Sizes:
    """Inputs whose run takes about `seconds`, for the published loop and for us alike."""
    each = pace.pair_seconds * (max(pace.document, 0.0) + k * pace.query)
    documents = min(most, max(LEAST.get(workload, 1), round(seconds / each)))
    if k == 1 or pace.document < SHARED:  # a pair costs us no less than it does them
        return Sizes(documents, documents * k)
    wanted = max(2, round(seconds / pace.pair_seconds))
    if workload in LEAST:  # documents differ: as many pairs of each
        return Sizes(documents, documents * min(k, max(1, wanted // documents)))
    whole = wanted // BATCH * BATCH if wanted >= BATCH else wanted
    return Sizes(documents, min(whole, documents * k))


def measure(
    workload: Workload, k: int, sizes: Sizes, contenders: Mapping[str, Contender], repeats: int, stamps: Stamps
) -> Cell:
    """Time a cell: `repeats` rounds, in each every contender once."""
    runs: dict[str, list[Run]] = {name: [] for name in contenders}
    cannot: dict[str, str] = {}
    names = list(contenders)
    for turn in range(repeats):
        stamp = stamps.next()
        groups = workload.groups(sizes.documents, k, stamp)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            given = every_so_often(scorable(groups), sizes.published_pairs) if name in _PAIRWISE else groups
            run = _tried(contenders[name], given)
            if isinstance(run, str):
                cannot[name] = run
            else:
                runs[name].append(run)
    cell = Cell(workload.name, k, sizes, {name: found for name, found in runs.items() if found}, cannot)
    paces = {name: median(run.pairs / run.seconds for run in found) for name, found in cell.runs.items()}
    said = ", ".join(f"{name} {pace:.3g}" for name, pace in paces.items())
    logger.info("%s, k = %d, %d documents, pairs/s: %s", workload.name, k, sizes.documents, said)
    return cell


def every_so_often(groups: Sequence[DocumentGroup], pairs: int) -> list[DocumentGroup]:
    """Of all pairs of the groups so many, evenly spaced, in order."""
    total = sum(len(group.queries) for group in groups)
    chosen = {place * total // pairs for place in range(min(pairs, total))} if pairs < total else set(range(total))
    kept, first = [], 0
    for group in groups:
        queries = tuple(query for place, query in enumerate(group.queries, first) if place in chosen)
        first += len(group.queries)
        if queries:
            kept.append(DocumentGroup(group.document, queries))
    return kept


def _tried(contender: Contender, groups: Sequence[DocumentGroup]) -> Run | str:
    """A run, or why this contender makes none."""
    try:
        return contender.run(groups)
    except CannotRun as error:
        return str(error)
