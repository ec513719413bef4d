"""What a format of export is: how a list becomes bytes, how its removal does, and how lists become a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from lakerank.records import RankedDocument


@dataclass(frozen=True, slots=True)
class ExportList:
    """The rows of one key: a query's documents by rank, or a document's queries by id.

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
    by: Literal["query_id", "doc_id"] = "query_id"
    remove: Callable[[str], bytes] | None = None
    finish: Callable[[Sequence[bytes]], bytes] = b"".join
    numbered: bool = False
    needs_query_text: bool = False
    needs_first_stage_score: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
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
