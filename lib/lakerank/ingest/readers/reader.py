"""What a reader is: it turns a file's content into sections; a file that it cannot read is a fault of that file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from lakerank.ingest.tables import SourceFault, SourceReject, TableName

Kind = Literal["auto", "folder", "jsonl", "pdf"]
PdfContent = Literal["image", "text", "both"]

#: The model's own limit of an image (768 visual tokens): a page rendered at this size is not resampled again.
PAGE_PIXELS = 602_112


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


class ReaderFault(Exception):
    """A file that cannot be read, and why."""

    def __init__(self, fault: SourceFault, detail: str) -> None:
        super().__init__(detail)
        self.fault = fault


def title_of(*candidates: object) -> str | None:
    """The first candidate with text, on one line, of at most 500 characters."""
    for candidate in candidates:
        title = " ".join(str(candidate or "").split())
        if title:
            return title[:500]
    return None
