"""Small source folders to ingest."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pypdfium2
import pytest
from PIL import Image

from lakerank.ingest.folder import Ingestion, ingest
from lakerank.ingest.readers.reader import ReadOptions
from lakerank.lake.storage import Storage


@pytest.fixture
def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 8), (200, 30, 30)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def make_pdf() -> Callable[..., bytes]:
    """PDF bytes with a page of each size in points, and a line of text on each when given."""

    def make(*sizes: tuple[float, float], text: str | None = None) -> bytes:
        document = pypdfium2.PdfDocument.new()
        for width, height in sizes:
            page = document.new_page(width, height)
            if text is not None:
                _write_line(document, page, text)
            page.close()
        buffer = io.BytesIO()
        document.save(buffer)
        document.close()
        return buffer.getvalue()

    return make


def _write_line(document: pypdfium2.PdfDocument, page: pypdfium2.PdfPage, text: str) -> None:
    raw = pypdfium2.raw
    line = raw.FPDFPageObj_NewTextObj(document, b"Helvetica", 18)
    encoded = (text + "\0").encode("utf-16-le")
    raw.FPDFText_SetText(line, (raw.FPDF_WCHAR * (len(encoded) // 2)).from_buffer_copy(encoded))
    raw.FPDFPageObj_Transform(line, 1, 0, 0, 1, 40, 100)
    raw.FPDFPage_InsertObject(page, line)
    raw.FPDFPage_GenerateContent(page)


@pytest.fixture
def write_files(tmp_path: Path) -> Callable[[dict[str, bytes | str]], Path]:
    """Write files under `source/` by relative path."""

    def write(files: dict[str, bytes | str]) -> Path:
        source = tmp_path / "source"
        for name, content in files.items():
            path = source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return source

    return write


@pytest.fixture
def run_ingest(tmp_path: Path) -> Callable[..., tuple[Ingestion, pa.Table]]:
    """Ingest into `lake/` and read the table back, in the order of its files."""

    def run(source: Path, follow_links: bool = False, **options: object) -> tuple[Ingestion, pa.Table]:
        read = ReadOptions(**options)  # type: ignore[arg-type]
        done = ingest(Storage(), str(source), str(tmp_path / "lake"), read, follow_links)
        parts = sorted(Path(done.written.output).glob("*.parquet"))
        return done, pa.concat_tables([pq.read_table(part) for part in parts])

    return run
