"""What a network read of a document as parts: boxes of its images, each a visual token, and passages of its text.

Shapes: S tokens of a document, P parts.
"""

from __future__ import annotations

import io
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import regex
from PIL import Image
from tokenizers import Tokenizer

from lakerank.limits import Limits
from lakerank.model.inputs import EncodedInput
from lakerank.model.preprocess.images import PatchShape, joined, source_frames
from lakerank.records import Document, Query

Floats = npt.NDArray[np.floating]

#: A word, or a character of a script that is written without spaces, each with its marks; in a text without any a sign.
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005\u3040-\u30ff\u3400-\u9fff"
_WORD = regex.compile(rf"[{_UNSPACED}]\p{{M}}*|(?:(?![{_UNSPACED}])[\p{{L}}\p{{N}}\p{{M}}])+")
_SIGN = regex.compile(r"\S")

#: Where a text pauses: at the end of a line or sentence, and within one; not in numbers and dotted names.
_PAUSES = [
    regex.compile(rf"\n|\p{{{kind}}}(?:\s|(?<=[^ -~]))") for kind in ("Sentence_Terminal", "Terminal_Punctuation")
]

#: By Exif orientation which of (x, y, 1 - x, 1 - y) of an upright image are x and y of the stored one.
_STORED = {1: (0, 1), 2: (2, 1), 3: (2, 3), 4: (0, 3), 5: (1, 0), 6: (1, 2), 7: (3, 2), 8: (3, 0)}


@dataclass(frozen=True, slots=True)
class Reading:
    """How a checkpoint reads documents, or queries, and into how many passages their texts are cut at most.

    `around`: what the prompt has before and behind a text. `image_token`: a visual token. `shape`: how images are cut.
    """

    tokenizer: Tokenizer
    around: tuple[str, str]
    passages: int
    image_token: int
    shape: PatchShape
    limits: Limits


class Part(NamedTuple):
    """Words, from `start` to `end` in the stored text, or a box in pixels of the stored image of a number."""

    kind: str
    start: int | None = None
    end: int | None = None
    image: int | None = None
    x0: float | None = None
    y0: float | None = None
    x1: float | None = None
    y1: float | None = None


@dataclass(frozen=True)
class Parts:
    """A document's parts, boxes first, and the share of each token that is in each: (S, P).

    `text`, `images` (height, width, 3): as far as they are read. `cells`: the rows and columns of boxes in their image.
    """

    parts: tuple[Part, ...]
    of_tokens: Floats
    text: str
    images: tuple[npt.NDArray[np.uint8], ...]
    cells: tuple[tuple[slice, slice], ...]

    def fifth(self, order: npt.NDArray[np.int64]) -> frozenset[int]:
        """The first fifth of the parts in an order: at least one, never all."""
        count = len(self.parts)
        return frozenset(order[: min(-(-count // 5), count - 1)].tolist())

    @cached_property
    def _medians(self) -> list[Floats]:
        return [np.median(pixels, axis=(0, 1)) for pixels in self.images]

    def without(self, removed: Collection[int], name: str) -> Document:
        """A document of all but some parts: words are cut out to the next, boxes get their image's median colour."""
        text, images = self.text, [pixels.copy() for pixels in self.images]
        for number in sorted(removed, reverse=True):
            part = self.parts[number]
            if part.image is None:
                after = self.parts[number + 1].start if number + 1 < len(self.parts) else len(self.text)
                text = text[: part.start] + text[after:]
            else:
                images[part.image][self.cells[number]] = self._medians[part.image]
        return Document(name, text or None, images=tuple(map(_bmp, images)))


def parts_of(content: Document | Query, encoded: EncodedInput, reading: Reading) -> Parts:
    """The parts of a document, or a query, of which a network reads `encoded`."""
    boxes, images, cells = _boxes(content, encoded, reading)
    visual = np.flatnonzero(encoded.token_ids == reading.image_token)[: len(boxes)]
    first = int(visual[-1]) + 2 if boxes else 0  # behind the marker that ends an image
    text = content.text if content.text and content.text.strip() else ""
    spans = _spans(text, reading, encoded.token_ids[first:], after_image=first > 0)
    text = text[: max((end for _, end in spans), default=0)]
    parts = (*boxes, *(Part("span", start, end) for start, end in passages(text, reading.passages)))
    owner = np.full(len(text), len(parts))
    for number, part in enumerate(parts[len(boxes) :], start=len(boxes)):
        owner[part.start : part.end] = number
    of_tokens = np.zeros((len(encoded.token_ids), len(parts) + 1), np.float32)
    of_tokens[visual, np.arange(len(boxes))] = 1
    for token, (start, end) in enumerate(spans, start=first):
        np.add.at(of_tokens[token], owner[start:end], 1 / max(1, end - start))
    return Parts(parts, of_tokens[:, :-1], text, images, cells)


def passages(text: str, most: int) -> list[tuple[int, int]]:
    """(start, end) of the words of a text; of more than `most`, of so many runs or fewer, cut where it pauses."""
    words = [match.span() for match in _WORD.finditer(text)] or [match.span() for match in _SIGN.finditer(text)]
    if len(words) <= most:
        return words
    gaps = [text[end:start] for (_, end), (start, _) in pairwise(words)]
    pauses = [[n for n, gap in enumerate(gaps, start=1) if pause.search(gap)] for pause in _PAUSES]
    size, cuts = len(words) / most, {0, len(words)}
    for place in np.arange(1, most) * size:
        near = (min(kind, key=lambda cut: abs(cut - place)) for kind in pauses if kind)
        cuts.add(next((cut for cut in near if abs(cut - place) < 0.51 * size), round(place)))
    return [(words[first][0], words[end - 1][1]) for first, end in pairwise(sorted(cuts))]


def _spans(text: str, reading: Reading, token_ids: npt.NDArray[np.int64], after_image: bool) -> list[tuple[int, int]]:
    """(start, end) in a text of its tokens, up to where it was cut."""
    before = "" if after_image else reading.around[0]
    encoding = reading.tokenizer.encode(before + text + reading.around[1], add_special_tokens=False)
    pairs = enumerate(zip(encoding.ids, token_ids.tolist(), strict=False))
    agreeing = next((number for number, (own, given) in pairs if own != given), len(token_ids))
    places = np.array(encoding.offsets[:agreeing], np.int64).reshape(-1, 2) - len(before)
    return [(start, end) for start, end in places.clip(0, len(text)).tolist()]


def _boxes(
    content: Document | Query, encoded: EncodedInput, reading: Reading
) -> tuple[list[Part], tuple[npt.NDArray[np.uint8], ...], tuple[tuple[slice, slice], ...]]:
    """A box for each visual token, in their order, the images, and where in these the boxes are."""
    sources = chain.from_iterable(source_frames(data, reading.limits) for data in content.images)
    images, side = (
        tuple(joined(each, reading.shape) for _, each in encoded.images),
        reading.shape.side * reading.shape.merge,
    )
    boxes, cells = [], []
    for image, (pixels, source) in enumerate(zip(images, sources, strict=False)):
        grid = pixels.shape[0] // side, pixels.shape[1] // side
        for row, column in np.ndindex(grid):
            boxes.append(Part("box", None, None, image, *_stored_box((row, column), grid, source)))
            cells.append((slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side)))
    return boxes, images, tuple(cells)


def _stored_box(cell: tuple[int, int], grid: tuple[int, int], source: tuple[int, int, int]) -> tuple[float, ...]:
    """x0, y0, x1, y1 of a cell of an upright image in the stored one of this width, height and Exif orientation."""
    corners = []
    for row, column in (cell, (cell[0] + 1, cell[1] + 1)):
        x, y = column / grid[1], row / grid[0]
        corners.append([(x, y, 1 - x, 1 - y)[axis] for axis in _STORED.get(source[2], (0, 1))])
    low, high = np.sort(corners, axis=0) * source[:2]
    return (*low.tolist(), *high.tolist())


def _bmp(pixels: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "BMP")
    return buffer.getvalue()
