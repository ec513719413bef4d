"""What a format of export is, which lists of a run changed since another, and how encoded lists become files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal, NamedTuple

from lakerank.records import RankedDocument
from lakerank.schemas import RANKED

Row = Mapping[str, Any]
Key = Literal["query_id", "doc_id", "group_id"]


@dataclass(frozen=True, slots=True)
class ExportList:
    """The rows of one key: a query's documents by rank, or the queries of a document or of a group's best by id.

    `number` is that of the query among all of the run, from 1, in the order of ids; 0 where a format does not need it.
    `query_text` and `first_stage_scores` (one a row) are there where a format needs them and the lake has them.
    """

    key: str
    rows: tuple[RankedDocument, ...]
    number: int = 0
    query_text: str | None = None
    first_stage_scores: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """Names in an export that are not in the lake.

    `name` is the index of a bulk request, Vespa's `namespace:document type` or the tag of a TREC run; `field` is the
    field of a document that holds its queries.
    """

    name: str | None = None
    field: str = "lakerank"


@dataclass(frozen=True, slots=True)
class Format:
    """A format of export.

    `by` is the key whose lists are written whole. A list has changed when one of `columns` has. `encode` and `remove`
    raise ExportError for an id that the format cannot carry. Without `remove` the format has no deletes.
    """

    suffix: str
    columns: tuple[str, ...]
    encode: Callable[[ExportList], bytes]
    by: Key = "query_id"
    remove: Callable[[str], bytes] | None = None
    finish: Callable[[Sequence[bytes]], bytes] = b"".join
    numbered: bool = False
    needs_query_text: bool = False
    needs_first_stage_score: bool = False


class Change(StrEnum):
    """What became of a list since the older run; all lists are added where there is none."""

    ADDED = "added"
    CHANGED = "changed"
    REMOVED = "removed"
    UNCHANGED = "unchanged"


class ChangedList(NamedTuple):
    """A key's list in the newer run (None where it has none) and what became of it."""

    key: str
    change: Change
    current: ExportList | None


def changes(rows: Iterable[Row], form: Format, first_number: int = 1) -> Iterator[ChangedList]:
    """Compare the lists of two runs, key by key.

    Args:
        rows: RANKED and `is_old`, `query_text`, `first_stage_score`, the last three where they are needed; sorted by
            the format's key, each run's rows of a key in their order in the export.
        first_number: number of the first query that the newer run has a list for.
    """
    values: Callable[[Row], Any] = itemgetter(*form.columns)
    number = first_number
    for key, group in groupby(rows, key=itemgetter(form.by)):
        both = list(group)
        new = [row for row in both if not row.get("is_old")]
        old = [values(row) for row in both if row.get("is_old")]
        if not new:
            yield ChangedList(key, Change.REMOVED, None)
            continue
        same = old == [values(row) for row in new]
        change = Change.UNCHANGED if same else Change.CHANGED if old else Change.ADDED
        yield ChangedList(key, change, _list(key, new, number if form.numbered else 0))
        number += 1


def _list(key: str, rows: list[Row], number: int) -> ExportList:
    scores = tuple(row["first_stage_score"] for row in rows) if "first_stage_score" in rows[0] else ()
    documents = tuple(RankedDocument(**{name: row[name] for name in RANKED.names}) for row in rows)
    return ExportList(key, documents, number, rows[0].get("query_text"), scores)


class Piece(NamedTuple):
    """An encoded list, and the rows in it."""

    data: bytes
    rows: int


@dataclass(frozen=True, slots=True)
class PartLimits:
    """Rows and bytes of a file at most, before compression; a larger list gets a file of its own."""

    rows: int
    size: int


def parts(pieces: Iterable[Piece], limits: PartLimits) -> Iterator[list[Piece]]:
    """Cut encoded lists, in order, into files within the limits. No file is empty, no list is split."""
    part: list[Piece] = []
    rows = size = 0
    for piece in pieces:
        if part and (rows + piece.rows > limits.rows or size + len(piece.data) > limits.size):
            yield part
            part, rows, size = [], 0, 0
        part.append(piece)
        rows += piece.rows
        size += len(piece.data)
    if part:
        yield part


def headed(header: bytes) -> Callable[[Sequence[bytes]], bytes]:
    """Encoded lists below a header line."""
    return lambda pieces: header + b"".join(pieces)


def shortest(value: float) -> float:
    """A float32 as the double with the fewest digits that is the same float32: nine digits always suffice."""
    return float(f"{value:.9g}")
