"""What a block of queries adds to an evaluation, as rows that may be merged in any order, on any machine."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lakerank.evaluation.analysis import samples as sampling
from lakerank.evaluation.analysis import winoground
from lakerank.evaluation.analysis.samples import Kind, Sample
from lakerank.evaluation.analysis.slices import slice_keys
from lakerank.evaluation.metrics.bootstrap import query_hashes
from lakerank.evaluation.metrics.measures import NAMES, PRIMARY, chance, figures
from lakerank.evaluation.metrics.sums import Figures, Sums
from lakerank.evaluation.pairs import Pairs, pair_up
from lakerank.evaluation.report import shortlist as shortlisting
from lakerank.evaluation.report.shortlist import Shortlist
from lakerank.evaluation.rows import MODALITY_NAMES

#: A row is a part of one thing, named by `kind` and `key`; what it holds depends on the kind.
PARTIAL = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("numbers", pa.list_(pa.float64())),
        pa.field("text", pa.string()),
    ]
)

_SLICE, _PART, _SAMPLE, _SHOWN, _COUNTS, _WINOGROUND = "slice", "part", "sample", "shown", "counts", "winoground"

#: Bins of the gains' histogram, from -1 to 1.
GAIN_BINS = 2001

_PRIMARY = NAMES.index(PRIMARY)


@dataclass(frozen=True, slots=True)
class Rule:
    """How to judge: whether the first stage has an order, whether there is another run, which columns make slices."""

    ordered: bool
    has_against: bool
    dimensions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Counts:
    """Queries by what became of them; `gains` counts them between GAIN_BINS + 1 edges from -1 to 1."""

    unjudged: int = 0
    without_candidates: int = 0
    gained: int = 0
    lost: int = 0
    gains: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(GAIN_BINS))


@dataclass(frozen=True, slots=True)
class Judged:
    """All partials together. `parts` are the sums of each benchmark's (benchmark, dataset, subset)."""

    slices: dict[tuple[str, str], Sums]
    parts: dict[tuple[str, str, str], Sums]
    samples: dict[Kind, Sample]
    shortlist: Shortlist
    counts: Counts
    winoground: winoground.Scores


def judge_block(rows: pa.Table, rule: Rule) -> tuple[pa.Table, pa.Table]:
    """Judge whole queries, given as ROWS in the order of query and document.

    Only queries of the queries table that have a judgement count.

    Returns:
        PARTIAL, and the figures query by query: query_id, and each measure of each list as `list:measure`.
    """
    pairs = pair_up(rows)
    has_judgement = np.bincount(pairs.query[pairs.judged], minlength=len(pairs.query_ids)) > 0
    is_judged = has_judgement & pairs.is_known
    judged = np.flatnonzero(is_judged)
    hashes = query_hashes(pairs.query_ids)
    found = _figures(pairs, rule).of(judged)
    modalities = _modalities(pairs)
    before = found.first[:, _PRIMARY] if rule.ordered else found.chance[:, 1]
    gains = found.reranked[:, _PRIMARY] - before
    partials = [_counts(pairs, is_judged, gains)]
    partials += _sums(pairs, judged, found, hashes, modalities, rule)
    partials += [
        _row(_SAMPLE, [kind.query_modality, kind.modality, kind.judgement], sample.packed())
        for kind, sample in sampling.sampled(pairs, is_judged, hashes).items()
    ]
    shown = shortlisting.shortlisted(pairs, judged, found, gains, hashes, rule.ordered, "task" in rule.dimensions)
    partials += [_row(_SHOWN, list(key), text=shortlisting.to_json(entries)) for key, entries in shown.items()]
    if scores := winoground.scores_of(pairs):
        partials.append(_row(_WINOGROUND, [], text=json.dumps(scores)))
    return pa.Table.from_pylist(partials, schema=PARTIAL), _per_query(pairs, judged, found, rule)


def _figures(pairs: Pairs, rule: Rule) -> Figures:
    """Of every query of the block, whether it is judged or not."""
    query, grade = pairs.query[pairs.judged], pairs.judgement[pairs.judged]

    def of(places: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        return figures(pairs.lengths(places), query, places[pairs.judged], grade)

    return Figures(
        of(pairs.first) if rule.ordered else np.zeros((len(pairs.query_ids), len(NAMES))),
        of(pairs.ranked),
        chance(pairs.lengths(pairs.first), query, grade, pairs.first[pairs.judged] >= 0),
        of(pairs.against) if rule.has_against else None,
    )


def _modalities(pairs: Pairs) -> list[str]:
    """What each query holds → what its candidates hold."""
    held = np.zeros((len(pairs.query_ids), len(MODALITY_NAMES)), bool)
    listed = (pairs.first >= 0) & (pairs.modality > 0)
    held[pairs.query[listed], pairs.modality[listed]] = True
    kinds, code = held.sum(axis=1), held.argmax(axis=1)
    names = np.where(kinds == 0, "nothing", np.where(kinds > 1, "mixed", np.array(MODALITY_NAMES)[code]))
    asked = np.array(MODALITY_NAMES)[pairs.query_modality]
    return [f"{query}→{documents}" for query, documents in zip(asked.tolist(), names.tolist(), strict=True)]


def _sums(
    pairs: Pairs,
    judged: npt.NDArray[np.int64],
    found: Figures,
    hashes: npt.NDArray[np.uint64],
    modalities: Sequence[str],
    rule: Rule,
) -> Iterator[dict[str, Any]]:
    members: defaultdict[tuple[str, tuple[str, ...]], list[int]] = defaultdict(list)
    for place, number in enumerate(judged.tolist()):
        labels = pairs.labels[number]
        for slice_key in slice_keys(labels, modalities[number], rule.dimensions):
            members[_SLICE, slice_key].append(place)
        if {"benchmark", "dataset"} <= labels.keys():
            members[_PART, (labels["benchmark"], labels["dataset"], labels.get("subset", ""))].append(place)
    for (kind, key), places in sorted(members.items()):
        chosen = np.array(places)
        yield _row(kind, list(key), Sums.over(found.of(chosen), hashes[judged[chosen]]).packed())


def _counts(pairs: Pairs, is_judged: npt.NDArray[np.bool_], gains: npt.NDArray[np.float64]) -> dict[str, Any]:
    bins = np.clip(((gains + 1) / 2 * GAIN_BINS).astype(int), 0, GAIN_BINS - 1)
    numbers = [
        np.sum(pairs.is_known & ~is_judged),
        np.sum(is_judged & (pairs.lengths(pairs.first) == 0)),
        np.sum(gains > 0),
        np.sum(gains < 0),
    ]
    return _row(_COUNTS, [], np.concatenate([numbers, np.bincount(bins, minlength=GAIN_BINS)]))


def _per_query(pairs: Pairs, judged: npt.NDArray[np.int64], found: Figures, rule: Rule) -> pa.Table:
    columns: dict[str, Any] = {
        "query_id": pa.array([pairs.query_ids[number] for number in judged.tolist()], pa.string())
    }
    lists = {"reranked": found.reranked}
    if rule.ordered:
        lists = {"first_stage": found.first, **lists}
    if found.against is not None:
        lists["against"] = found.against
    for list_name, table in lists.items():
        for column, name in enumerate(NAMES):
            columns[f"{list_name}:{name}"] = pa.array(table[:, column])
    return pa.table(columns)


def _row(
    kind: str, key: Sequence[str | int | None], numbers: npt.NDArray[np.float64] | None = None, text: str | None = None
) -> dict[str, Any]:
    return {"kind": kind, "key": json.dumps(key, ensure_ascii=False), "numbers": numbers, "text": text}


def merge(rows: pa.Table) -> pa.Table:
    """Partials of which no two have the same kind and key, in the order of those."""
    groups: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for place, key in enumerate(zip(rows["kind"].to_pylist(), rows["key"].to_pylist(), strict=True)):
        groups[key].append(place)
    merged = [_merged(kind, key, rows.take(places)) for (kind, key), places in sorted(groups.items())]
    return pa.Table.from_pylist(merged, schema=PARTIAL)


def _merged(kind: str, key: str, rows: pa.Table) -> dict[str, Any]:
    numbers, text = None, None
    if kind == _SAMPLE:
        numbers = sampling.merged(Sample.unpacked(part) for part in _vectors(rows)).packed()
    elif kind == _SHOWN:
        parts = [shortlisting.from_json(part) for part in rows["text"].to_pylist()]
        text = shortlisting.to_json(shortlisting.merged(parts, json.loads(key)[0]))
    elif kind == _WINOGROUND:
        scores: dict[str, Any] = {}
        for part in rows["text"].to_pylist():
            scores |= json.loads(part)
        text = json.dumps(scores, sort_keys=True)
    else:
        # Sorted, so that rounding does not depend on which part came first.
        vectors = sorted(_vectors(rows), key=lambda vector: vector.tobytes())
        numbers = np.sum(vectors, axis=0) if vectors else None
    return {"kind": kind, "key": key, "numbers": numbers, "text": text}


def _vectors(rows: pa.Table) -> Iterator[npt.NDArray[np.float64]]:
    for part in rows["numbers"]:
        if part.is_valid:
            yield part.values.to_numpy(zero_copy_only=False)


def collect(partials: Iterable[pa.Table]) -> Judged:
    """What all partials come to."""
    rows = merge(pa.concat_tables(partials))
    slices: dict[tuple[str, str], Sums] = {}
    parts: dict[tuple[str, str, str], Sums] = {}
    samples: dict[Kind, Sample] = {}
    shortlist: Shortlist = {}
    counts, scores = Counts(), {}
    for kind, key_text, numbers, text in zip(
        rows["kind"].to_pylist(), rows["key"].to_pylist(), rows["numbers"], rows["text"].to_pylist(), strict=True
    ):
        key = json.loads(key_text)
        vector = numbers.values.to_numpy(zero_copy_only=False) if numbers.is_valid else np.zeros(0)
        if kind == _SLICE:
            slices[key[0], key[1]] = Sums.unpacked(vector)
        elif kind == _PART:
            parts[key[0], key[1], key[2]] = Sums.unpacked(vector)
        elif kind == _SAMPLE:
            samples[Kind(*key)] = Sample.unpacked(vector)
        elif kind == _SHOWN:
            shortlist[key[0], key[1]] = shortlisting.from_json(text)
        elif kind == _WINOGROUND:
            scores = json.loads(text)
        else:
            unjudged, without, gained, lost = (int(count) for count in vector[:4])
            counts = Counts(unjudged, without, gained, lost, vector[4:])
    return Judged(slices, parts, samples, shortlist, counts, scores)
