"""What a source file turns into: items for a table, and what could not be read, with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from lakerank.records import Candidate, Qrel


class SourceFault(StrEnum):
    """Why a file, a page or a line of the source is not in the table. The list is closed."""

    UNSUPPORTED_FORMAT = "unsupported_format"
    FILE_UNREADABLE = "file_unreadable"
    FILE_TOO_LARGE = "file_too_large"
    SYMBOLIC_LINK = "symbolic_link"
    NAME_UNDECODABLE = "name_undecodable"
    TEXT_UNDECODABLE = "text_undecodable"
    PDF_UNREADABLE = "pdf_unreadable"
    PDF_ENCRYPTED = "pdf_encrypted"
    PDF_PAGE_UNREADABLE = "pdf_page_unreadable"
    JSON_INVALID = "json_invalid"
    FIELD_MISSING = "field_missing"
    FIELD_INVALID = "field_invalid"
    IMAGE_NOT_FOUND = "image_not_found"
    IMAGE_OUTSIDE_SOURCE = "image_outside_source"
    QUERY_NOT_FOUND = "query_not_found"


@dataclass(frozen=True, slots=True)
class SourceReject:
    """A part of the source that could not be read: `line` of a JSONL file and `page` of a PDF count from 1."""

    path: str
    fault: SourceFault
    detail: str = ""
    line: int | None = None
    page: int | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """A row of `documents` or `queries`; `kept` holds the values of the extra columns asked for, in their order."""

    id: str
    text: str | None = None
    image: bytes | None = None
    kept: tuple[str | None, ...] = ()


#: A row of any table that can be ingested.
Row = Item | Candidate | Qrel
