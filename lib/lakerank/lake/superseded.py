"""Unit files of which no pair's score would be missed: each pair stands in another file as well."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc

from lakerank.lake.scores import TornUnit, read_unit
from lakerank.lake.storage import Storage, StoredFile
from lakerank.records import TRANSIENT_REASONS

_THREADS = 8
_KEYS = ["query_hash", "doc_hash"]

Pair = tuple[str, str]


def superseded_units(
    storage: Storage, output: str, scorer: str, units: Mapping[str, StoredFile], named: frozenset[str], old: float
) -> dict[str, str]:
    """Units that no kept run names, were written before `old`, and hold no score that is not elsewhere: why, by name.

    Of several such units with the same pair the first by name keeps it. Memory grows with the pairs of the units that
    no run names, not with the others.
    """
    doubtful = sorted(unit for unit, file in units.items() if unit not in named and file.written < old)
    pairs = {unit: _pairs(storage, output, scorer, unit) for unit in doubtful}
    torn = {unit: "torn scores" for unit, held in pairs.items() if held is None}
    wanted = {pair for held in pairs.values() for pair in held or ()}
    certain = [unit for unit in units if unit not in pairs] if wanted else []
    elsewhere = set(_held(storage, output, scorer, certain, wanted))
    superseded = {}
    for unit in doubtful:
        held = pairs[unit]
        if held is None:
            continue
        if held <= elsewhere:
            superseded[unit] = "superseded scores"
        else:
            elsewhere |= held
    return torn | superseded


def _held(storage: Storage, output: str, scorer: str, units: Iterable[str], wanted: set[Pair]) -> Iterator[Pair]:
    """Those of the wanted pairs that stand in some units."""

    def look(unit: str) -> set[Pair]:
        return (_pairs(storage, output, scorer, unit) or set()) & wanted

    with ThreadPoolExecutor(_THREADS, "superseded") as pool:
        for held in pool.map(look, units):
            yield from held


def _pairs(storage: Storage, output: str, scorer: str, unit: str) -> set[Pair] | None:
    """Contents of the pairs that a unit holds a lasting result of; None when its file is torn."""
    try:
        rows = read_unit(storage, output, scorer, unit)
    except TornUnit:
        return None
    transient = pc.is_in(rows["reason"], pa.array([reason.value for reason in TRANSIENT_REASONS]))
    lasting = rows.filter(pc.invert(transient)).select(_KEYS)
    return set(zip(*(column.to_pylist() for column in lasting.columns), strict=True))
