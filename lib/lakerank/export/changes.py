"""From sorted rows to lists, and which of them changed between two runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from operator import itemgetter
from typing import Any

from lakerank.export.format import ExportList, Format
from lakerank.records import RankedDocument
from lakerank.schemas import RANKED

Row = Mapping[str, Any]


class Change(StrEnum):
    """What became of a list since the older run; all lists are added where there is none."""

    ADDED = "added"
    CHANGED = "changed"
    REMOVED = "removed"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class ChangedList:
    """A key's list in the newer run (None where it has none) and what became of it."""

    key: str
    change: Change
    current: ExportList | None


def changes(rows: Iterable[Row], form: Format, first_number: int = 1) -> Iterator[ChangedList]:
    """Compare the lists of two runs, key by key.

    Args:
        rows: RANKED and `is_old`, `query_text`, `first_stage_score`, the last three where they are needed; sorted by
            the format's key, each run's rows of a key in the order they are to stand in.
        first_number: number of the first query that the newer run has a list for.
    """
    values: Callable[[Row], Any] = itemgetter(*form.columns)
    number = first_number
    for key, group in groupby(rows, key=itemgetter(form.by)):
        old: list[Row] = []
        new: list[Row] = []
        for row in group:
            (old if row.get("is_old") else new).append(row)
        if not new:
            yield ChangedList(key, Change.REMOVED, None)
            continue
        if not old:
            change = Change.ADDED
        else:
            same = [values(row) for row in old] == [values(row) for row in new]
            change = Change.UNCHANGED if same else Change.CHANGED
        yield ChangedList(key, change, _list(key, new, number if form.numbered else 0))
        number += 1


def _list(key: str, rows: list[Row], number: int) -> ExportList:
    scores = tuple(row["first_stage_score"] for row in rows) if "first_stage_score" in rows[0] else ()
    documents = tuple(RankedDocument(**{name: row[name] for name in RANKED.names}) for row in rows)
    return ExportList(key, documents, number, rows[0].get("query_text"), scores)
