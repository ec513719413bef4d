"""Page images as JPEG files: pages of PDF files, or pages of words drawn here."""

from __future__ import annotations

import gzip
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lakerank.errors import ConfigError, DependencyError
from lakerank_benchmark.texts import WORDS

#: Pixels of a page: the model's own cap, 768 visual tokens of 28 × 28.
PAGE_PIXELS = 602_112
JPEG_QUALITY = 85

#: A drawn page: 24 × 32 visual tokens at the cap.
_WIDTH, _HEIGHT, _MARGIN, _LINE = 672, 896, 56, 18


def drawn_pages(count: int, seed: int = 0) -> Iterator[bytes]:
    """Pages of black words on white, encoded, of exactly `PAGE_PIXELS`."""
    font = ImageFont.load_default(size=13)
    generator = np.random.default_rng(seed)
    for _ in range(count):
        page = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
        draw = ImageDraw.Draw(page)
        for top in range(_MARGIN, _HEIGHT - _MARGIN, _LINE):
            line = " ".join(WORDS[index] for index in generator.integers(len(WORDS), size=12))
            draw.text((_MARGIN, top), line[:84], fill="black", font=font)
        yield _jpeg(page)


def pdf_files(places: Sequence[Path]) -> list[Path]:
    """PDF files named, and those under folders named, in order; `.pdf.gz` is how Debian ships them.

    Raises:
        ConfigError: there is none in one of the places.
    """
    files = []
    for place in places:
        found = sorted([*place.rglob("*.pdf"), *place.rglob("*.pdf.gz")]) if place.is_dir() else [place]
        if not found or not all(file.is_file() for file in found):
            raise ConfigError([f"--pdf {place}: no PDF file is there"])
        files += found
    return files


def pdf_pages(files: Sequence[Path], count: int, page_pixels: int = PAGE_PIXELS) -> Iterator[bytes]:
    """`count` pages at most, one of each file in turn, from the fifth page on (before it stand titles and contents).

    Raises:
        DependencyError: pypdfium2 is not installed.
        ConfigError: a file is not a PDF that can be read.
    """
    try:
        import pypdfium2
    except ImportError as error:
        raise DependencyError("--pdf needs pypdfium2: pip install 'lakerank[ingest]'") from error
    made = 0
    for turn in range(count):
        for file in files:
            try:
                with closing(pypdfium2.PdfDocument(_content(file))) as document:
                    number = min(4, len(document) - 1) + turn
                    if number >= len(document):
                        continue
                    page = document[number]
                    scale = math.sqrt(page_pixels / (page.get_width() * page.get_height())) * 0.998
                    yield _jpeg(page.render(scale=scale).to_pil().convert("RGB"))
            except pypdfium2.PdfiumError as error:
                raise ConfigError([f"--pdf {file}: {error}"]) from error
            made += 1
            if made == count:
                return


def _content(file: Path) -> bytes:
    content = file.read_bytes()
    return gzip.decompress(content) if file.suffix == ".gz" else content


def _jpeg(page: Image.Image) -> bytes:
    stream = io.BytesIO()
    page.save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()
