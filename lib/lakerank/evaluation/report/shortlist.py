"""The few queries of a run that are worth looking at, with the tops of their lists, picked while all pass by."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from lakerank.evaluation.metrics.measures import NAMES
from lakerank.evaluation.metrics.sums import Figures
from lakerank.evaluation.pairs import Pairs

#: Queries that gained and that lost most, of each; and queries kept of each task, for examples to be chosen from.
EXTREMES, PER_TASK = 6, 48

#: Documents kept of each list.
DEPTH = 5

GAINED, LOST, TASK = "gained", "lost", "task"


@dataclass(frozen=True, slots=True)
class Line:
    """A document at a place of a list, from 1. `other_rank` is its place in the other list, None where it has none."""

    doc_id: str
    rank: int
    other_rank: int | None
    judgement: int | None
    relevance: float | None


@dataclass(frozen=True, slots=True)
class Shortlisted:
    """A query with its figures and the tops of its lists. `first_stage` is None when the candidates have no order.

    `draw` puts queries into an order that is fixed and nobody's.
    """

    query_id: str
    draw: int
    labels: Mapping[str, str]
    gain: float
    first_stage: Mapping[str, float] | None
    reranked: Mapping[str, float]
    before: tuple[Line, ...]
    after: tuple[Line, ...]


Shortlist = dict[tuple[str, str], list[Shortlisted]]


def shortlisted(
    pairs: Pairs,
    judged: npt.NDArray[np.int64],
    figures: Figures,
    gains: npt.NDArray[np.float64],
    hashes: npt.NDArray[np.uint64],
    ordered: bool,
    by_task: bool = True,
) -> Shortlist:
    """What a block has for the shortlist.

    Args:
        judged: (J,) queries of the block that are judged; `figures` and `gains` are theirs, `hashes` (Q,) all's.
        by_task: whether the task says what kind of query it is.
    """
    tasks = [pairs.labels[number].get("task", "") if by_task else "" for number in judged.tolist()]
    names = [pairs.query_ids[number] for number in judged.tolist()]
    draws = hashes[judged]
    chosen: dict[tuple[str, str], list[int]] = {
        (GAINED, ""): [one for one in _first(EXTREMES, -gains, names) if gains[one] > 0],
        (LOST, ""): [one for one in _first(EXTREMES, gains, names) if gains[one] < 0],
    }
    for task in dict.fromkeys(tasks):
        mine = np.array([number for number, own in enumerate(tasks) if own == task])
        chosen[TASK, task] = mine[np.argsort(draws[mine], kind="stable")[:PER_TASK]].tolist()

    def entry(one: int) -> Shortlisted:
        number = int(judged[one])
        before, after = _tops(pairs, number, ordered)
        first = dict(zip(NAMES, figures.first[one].tolist(), strict=True)) if ordered else None
        reranked = dict(zip(NAMES, figures.reranked[one].tolist(), strict=True))
        draw, gain = int(draws[one]), float(gains[one])
        return Shortlisted(names[one], draw, pairs.labels[number], gain, first, reranked, before, after)

    made = {one: entry(one) for one in {one for ones in chosen.values() for one in ones}}
    return {key: [made[one] for one in ones] for key, ones in chosen.items()}


def _first(count: int, keys: npt.NDArray[np.float64], names: Sequence[str]) -> list[int]:
    """The `count` smallest keys, ties by name."""
    near = (
        np.argsort(keys, kind="stable")
        if len(keys) <= count
        else np.flatnonzero(keys <= np.partition(keys, count - 1)[count - 1])
    )
    return sorted(near.tolist(), key=lambda one: (keys[one], names[one]))[:count]


def _tops(pairs: Pairs, query: int, ordered: bool) -> tuple[tuple[Line, ...], tuple[Line, ...]]:
    start, end = np.searchsorted(pairs.query, [query, query + 1])

    def lines(own: npt.NDArray[np.int64], other: npt.NDArray[np.int64], scored: bool) -> tuple[Line, ...]:
        top = [one for one in np.argsort(own[start:end], kind="stable") + start if own[one] >= 0][:DEPTH]
        return tuple(
            Line(
                pairs.doc_ids[int(one)].as_py(),
                int(own[one]) + 1,
                int(other[one]) + 1 if other[one] >= 0 else None,
                int(pairs.judgement[one]) if pairs.judged[one] else None,
                float(pairs.relevance[one]) if scored else None,
            )
            for one in top
        )

    first = pairs.first if ordered else np.full_like(pairs.first, -1)
    return lines(first, pairs.ranked, False), lines(pairs.ranked, first, True)


def merged(parts: Iterable[Sequence[Shortlisted]], kind: str) -> list[Shortlisted]:
    """One list of what several blocks have for it."""
    every = [one for part in parts for one in part]
    if kind == TASK:
        return sorted(every, key=lambda one: (one.draw, one.query_id))[:PER_TASK]
    sign = -1 if kind == GAINED else 1
    return sorted(every, key=lambda one: (sign * one.gain, one.query_id))[:EXTREMES]


def to_json(entries: Sequence[Shortlisted]) -> str:
    return json.dumps([asdict(one) for one in entries])


def from_json(text: str) -> list[Shortlisted]:
    """What `to_json` wrote."""
    found = []
    for one in json.loads(text):
        before, after = (tuple(Line(**line) for line in one.pop(name)) for name in ("before", "after"))
        found.append(Shortlisted(**one, before=before, after=after))
    return found


def choose(shortlist: Shortlist, count: int) -> list[Shortlisted]:
    """Up to `count` examples, whatever their results: task by task in turn, languages and names not shown yet first."""
    waiting = {task: list(entries) for (kind, task), entries in shortlist.items() if kind == TASK}
    tasks = sorted(waiting, key=lambda task: (-len(waiting[task]), task))
    chosen: list[Shortlisted] = []
    languages: set[str | None] = set()
    names: set[str | None] = set()
    while len(chosen) < count and any(waiting.values()):
        for task in tasks:
            if waiting[task]:
                labels = [one.labels for one in waiting[task]]
                news = [(one.get("language") not in languages) + (one.get("name") not in names) for one in labels]
                position = news.index(max(news))
                languages.add(labels[position].get("language"))
                names.add(labels[position].get("name"))
                chosen.append(waiting[task].pop(position))
    return chosen[:count]
