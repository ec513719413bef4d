"""What a format is: how one list becomes bytes, how a removed one does, and how such pieces become a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from lakerank.export.lists import ExportList


@dataclass(frozen=True, slots=True)
class Target:
    """Names that stand in an export and not in the lake.

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


def headed(header: bytes) -> Callable[[Sequence[bytes]], bytes]:
    """Pieces below a header line."""
    return lambda pieces: header + b"".join(pieces)
