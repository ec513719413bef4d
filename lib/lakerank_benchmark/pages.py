"""Page images: words on white, of the sizes that pages are scanned in."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

#: Of page images.
JPEG_QUALITY = 85

#: Sides of drawn pages: 24 × 32 visual tokens, at the cap, so that nothing is resized; and A4 at 150 and 300 dots an
#: inch, as pages are scanned.
PAGE_SIZES = {"pages": (672, 896), "pages-150": (1240, 1754), "pages-300": (2480, 3508)}

#: A drawn page's margin, line and height of letters, as shares of its width.
_MARGIN, _LINE, _LETTERS = 56 / 672, 18 / 672, 13 / 672

WORDS = """
the of and to in is that for it as was with be by on not he his but at are this have from or had an they which
one you were all her she there would their we him been has when who will no more if out so up said what its
about than into them can only other time new some could these two may first then do any like my now over such
our man even most made after also did many off before must well back through years much where your way down
should because long each just state those people too how little good world make very year still see own work men
day get here old between both life being under three never know same last another while us might great house
right part against place high during small water number system file install disk partition network kernel memory
screen keyboard letter report price market contract table figure value result method energy weather train bridge
river window paper colour music garden doctor school history science language travel ticket engine battery
machine software server address
""".split()  # noqa: SIM905 - 10 lines, not 250


@functools.cache
def scanned_pages(count: int, workload: str) -> Sequence[bytes]:
    """Drawn pages that must be resized; made once."""
    return [*drawn_pages(count, size=PAGE_SIZES[workload])]


def drawn_pages(count: int, seed: int = 0, size: tuple[int, int] = PAGE_SIZES["pages"]) -> Iterator[bytes]:
    """Pages of black words on white, encoded, of a width and height."""
    width, height = size
    margin, line_height, letters = (round(share * width) for share in (_MARGIN, _LINE, _LETTERS))
    font = ImageFont.load_default(size=letters)
    generator = np.random.default_rng(seed)
    for _ in range(count):
        page = Image.new("RGB", size, "white")
        draw = ImageDraw.Draw(page)
        for top in range(margin, height - margin, line_height):
            line = " ".join(WORDS[index] for index in generator.integers(len(WORDS), size=12))
            draw.text((margin, top), line[:84], fill="black", font=font)
        yield jpeg(page)


def jpeg(page: Image.Image) -> bytes:
    """A page as a scan is stored."""
    stream = io.BytesIO()
    page.save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()
