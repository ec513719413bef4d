"""Readers of files, by the suffix of a name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lakerank.ingest.readers.markup import read_html
from lakerank.ingest.readers.office import read_docx, read_epub, read_open_document, read_pptx, read_xlsx
from lakerank.ingest.readers.pdf import read_pdf
from lakerank.ingest.readers.reader import Reader, ReadOptions, Section
from lakerank.ingest.readers.text import read_markup, read_text

_TEXTS = ".txt .text .log"
_MARKUP = ".md .markdown .rst .org"
_IMAGES = ".png .jpg .jpeg .webp .tif .tiff .bmp .gif"
_OPEN_DOCUMENTS = ".odt .ods .odp"


def _read_image(_path: str, content: bytes, _options: ReadOptions) -> Iterator[Section]:
    yield Section(image=content)


#: The reader of each suffix, lower-case.
READERS: Mapping[str, Reader] = {
    **dict.fromkeys(_TEXTS.split(), read_text),
    **dict.fromkeys(_MARKUP.split(), read_markup),
    **dict.fromkeys(_IMAGES.split(), _read_image),
    **dict.fromkeys([".html", ".htm", ".xhtml"], read_html),
    ".pdf": read_pdf,
    ".docx": read_docx,
    ".pptx": read_pptx,
    ".xlsx": read_xlsx,
    **dict.fromkeys(_OPEN_DOCUMENTS.split(), read_open_document),
    ".epub": read_epub,
}

#: Files of the sort that LibreOffice prints as pages; the old ones have no reader of their own.
OFFICE = frozenset([".docx", ".pptx", ".xlsx", ".odt", ".ods", ".odp", ".doc", ".ppt", ".xls", ".rtf"])
