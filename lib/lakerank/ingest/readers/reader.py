"""What a reader is: it turns a file's content into sections; a file that it cannot read is a fault of that file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from lakerank.errors import requires
from lakerank.ingest.rejects import SourceReject
from lakerank.ingest.tables import TableName
from lakerank.lake.images.pdf import PAGE_PIXELS

Kind = Literal["auto", "folder", "jsonl", "pdf"]
PdfContent = Literal["image", "text", "both"]


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How files become rows; sizes in bytes, pixels and characters (`chunk`, None: whole texts).

    `keep` names further fields of records that become text columns. `encoding` is that of texts which are not UTF-8
    (None: guessed). `skip` has paths in the source that are passed over. `file_in_ids`: ids of a folder's records have
    their file in front (`prices.csv#7`), so that those of two files differ.
    """

    kind: Kind = "auto"
    table: TableName = "documents"
    keep: tuple[str, ...] = ()
    pdf_content: PdfContent = "image"
    page_pixels: int = PAGE_PIXELS
    max_file_bytes: int = 2**28
    encoding: str | None = None
    chunk: int | None = None
    chunk_overlap: int = 0
    office_pages: bool = False
    skip: tuple[str, ...] = ()
    file_in_ids: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """A whole file, or the page, slide, sheet or chapter of it that `place` names (`page=7`).

    `search_text` is the text of a page image, for search only. `encoding` is one that was guessed.
    """

    text: str | None = None
    image: bytes | None = None
    place: str = ""
    page: int | None = None
    title: str | None = None
    language: str | None = None
    search_text: str | None = None
    encoding: str | None = None


#: Reads a file's content, given its path for messages. Whatever it raises is a reject of the file.
Reader = Callable[[str, bytes, ReadOptions], Iterator[Section | SourceReject]]


def library(name: str, files: str, extra: str) -> Any:
    """An optional library, by its name; raises DependencyError, which says what files need it and how to get it."""
    with requires(extra, f"{files} need {name}"):
        return import_module(name)


def title_of(*candidates: object) -> str | None:
    """The first candidate with text, on one line, of at most 500 characters."""
    for candidate in candidates:
        title = " ".join(str(candidate or "").split())
        if title:
            return title[:500]
    return None
