"""Sketches of documents: the MinHash of a text's shingles, and small versions of images; and how alike two are."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lakerank.errors import requires
from lakerank.fingerprint import splitmix64
from lakerank.lake.images.files import ImageFiles, UnreadableImage, row_images
from lakerank.limits import Limits
from lakerank.model.inputs import RejectedInput
from lakerank.model.preprocess.images import small_image
from lakerank.model.preprocess.pipeline import watched
from lakerank.schemas import CONTENT

#: Values of a MinHash, and the pixels of a side of a small image.
PERMUTATIONS, SIDE = 128, 24

#: A document's sketch: PERMUTATIONS values of 4 bytes; SIDE × SIDE × 3 bytes for each image. Null: no text, no image.
SKETCHES = pa.schema([("minhash", pa.binary(4 * PERMUTATIONS)), ("pixels", pa.binary())])

#: What the index of documents has beside it: pixels of an image's sides, the mean of several images'.
IMAGE_SIZE = ["width", "height"]

#: A document in a bucket: the bucket, what its content is told apart by, and its number.
BUCKETS = pa.schema([("bucket", pa.uint64()), ("content", pa.uint64()), ("document", pa.int64())])

#: Words and characters of scripts without spaces, of which so many neighbours are a shingle.
_UNSPACED = r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
_TOKEN = re.compile(rf"{_UNSPACED}|(?:(?!{_UNSPACED})[^\W_])+")
_SHINGLE = 3

#: More images than this a document has no sketch of.
_MOST_IMAGES = 32

#: An image's buckets: its luma in _CELLS × _CELLS cells, each to the nearest multiple of _STEP from an offset of the
#: bucket. Cells are means, so what compression and resizing do to them is far less than a step.
_IMAGE_BUCKETS, _CELLS, _STEP = 12, 4, 24
_LUMA = np.array([0.299, 0.587, 0.114])

#: An image of fewer pixels a cell is changed more by compression and resizing: the difference allowed grows as cells
#: shrink, up to so many times.
_CELL_PIXELS, _MOST_ALLOWED = 14, 4.5

UInt64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Likeness:
    """What near duplicates are: the least Jaccard similarity of two texts' shingles, as their MinHashes estimate it,
    and the largest difference of two small images anywhere, of 255: a mean cannot tell pages of text apart. Images of
    fewer than 336 pixels a side may differ more, up to 4.5 times as much from 75 pixels down."""

    text: float
    image: float

    def rows(self) -> int:
        """Values of a MinHash that make a bucket: the most that find 98 % of the pairs at the least similarity."""
        found = [1 - (1 - self.text**rows) ** (PERMUTATIONS // rows) for rows in range(1, 17)]
        return max(1, sum(share >= 0.98 for share in found))

    def alike(self, one: pa.Table, other: pa.Table) -> Bools:
        """Whether each of some SKETCHES, with IMAGE_SIZE, is a near duplicate of that in the same row: (N,)."""
        texts, images = ([table[name].to_pylist() for table in (one, other)] for name in SKETCHES.names)
        sides = np.min(
            [pc.fill_null(side, 2**15) for table in (one, other) for side in table.select(IMAGE_SIZE)], axis=0
        )
        most = self.image * np.clip(_CELL_PIXELS * SIDE / np.maximum(sides, 1), 1, _MOST_ALLOWED)
        alike = [
            self._texts(*text) and _images(image, allowed) and (text[0] or image[0]) is not None
            for text, image, allowed in zip(zip(*texts, strict=True), zip(*images, strict=True), most, strict=True)
        ]
        return np.array(alike, bool)

    def _texts(self, one: bytes | None, other: bytes | None) -> bool:
        if one is None or other is None:
            return one is other
        return bool((np.frombuffer(one, "<u4") == np.frombuffer(other, "<u4")).mean() >= self.text)


def _images(pair: Sequence[bytes | None], most: float) -> bool:
    one, other = pair
    if one is None or other is None or len(one) != len(other):
        return one is other
    first, second = (np.frombuffer(images, np.uint8).astype(np.int16) for images in (one, other))
    return bool(np.abs(first - second).max() <= most)


def require_library() -> None:
    """Raises DependencyError: the library of MinHashes is not installed."""
    with requires("duplicates", "near duplicates need rensa", ", workers too"):
        import rensa  # noqa: F401


def sketches(files: ImageFiles, rows: pa.RecordBatch) -> pa.RecordBatch:
    """The SKETCHES of documents. One whose images cannot all be read, or are too many, or have frames, has none."""
    from rensa import RMinHash

    shown = [name for name in CONTENT[1:] if rows.column(name).null_count < len(rows)]
    images = map(row_images, rows.select([rows.schema.names[0], *shown]).to_pylist())
    small = [_small_images(files, of_row) for of_row in images]
    texts = zip(rows.column("text").to_pylist(), small, strict=True)
    tokens = [[] if pixels is None else _tokens(text) for text, pixels in texts]
    has = [bool(words) for words in tokens]
    hashed = RMinHash.hash_token_sets([[*words, *[""] * (_SHINGLE - 1)] for words in tokens if words])
    shingled = [_shingles(np.array(hashes, np.uint64)) for hashes in hashed]
    ends = np.cumsum([0, *map(len, shingled)]).astype(np.uint64)
    flat = np.concatenate([np.zeros(0, np.uint64), *shingled])
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, ends, num_perm=PERMUTATIONS, seed=1).to_rows()
    minhashes = iter([np.array(row, "<u4").tobytes() for row in matrix] if hashed else ())
    columns = [[next(minhashes) if words else None for words in has], [pixels or None for pixels in small]]
    return pa.RecordBatch.from_arrays(
        [pa.array(column, kind) for column, kind in zip(columns, SKETCHES.types, strict=True)], schema=SKETCHES
    )


def buckets(rows: pa.Table, likeness: Likeness) -> Iterator[tuple[UInt64, Bools]]:
    """Buckets of SKETCHES, where near duplicates meet: those of the rows that have one (B,), and which do (N,)."""
    minhash, pixels = (rows[name].combine_chunks() for name in SKETCHES.names)
    has_pixels, has_text = (np.asarray(column.is_valid().to_numpy(False)) for column in (pixels, minhash))
    values = np.frombuffer(b"".join(minhash.drop_null().to_pylist()), "<u4").reshape(-1, PERMUTATIONS).astype(np.uint64)
    of_text, width = has_text & ~has_pixels, likeness.rows()
    values = values[of_text[has_text]]
    for band in range(PERMUTATIONS // width if len(values) else 0):
        yield _combined(values[:, band * width : (band + 1) * width], band), of_text
    first = np.frombuffer(b"".join(row[: SIDE * SIDE * 3] for row in pixels.drop_null().to_pylist()), np.uint8)
    luma = first.reshape(-1, SIDE, SIDE, 3) @ _LUMA
    cells = luma.reshape(-1, _CELLS, SIDE // _CELLS, _CELLS, SIDE // _CELLS).mean(axis=(2, 4)).reshape(-1, _CELLS**2)
    for band in range(_IMAGE_BUCKETS if len(cells) else 0):
        offsets = splitmix64(np.arange(_CELLS**2, dtype=np.uint64) + np.uint64(1000 * band + 1)) % np.uint64(_STEP)
        steps = ((cells + offsets) // _STEP).astype(np.uint64)
        yield _combined(steps, -1 - band), has_pixels


def bucket_pairs(rows: pa.Table, all_of: int = 8) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pairs of documents of BUCKETS to compare, the smaller number first: (P,) each.

    Of a small bucket all; of a larger one each with the bucket's first and with the one before it. Equal contents are
    in it once: without a comparison they are the same.
    """
    bucket, content, document = (rows[name].to_numpy() for name in BUCKETS.names)
    order = np.lexsort((document, content, bucket))
    bucket, content, document = bucket[order], content[order], document[order]
    kept = np.ones(len(order), bool)
    kept[1:] = (bucket[1:] != bucket[:-1]) | (content[1:] != content[:-1])
    bucket, document = bucket[kept], document[kept]
    starts = np.flatnonzero(np.concatenate([[True], bucket[1:] != bucket[:-1]])[: len(bucket)])
    sizes = np.diff(starts, append=len(bucket))
    place, size = np.arange(len(bucket)) - np.repeat(starts, sizes), np.repeat(sizes, sizes)
    here = np.arange(len(bucket))
    later = [here[(place >= back) & ((size <= all_of) | (back == 1))] for back in range(1, all_of)]
    ones = np.concatenate([*(rows - back for back, rows in enumerate(later, start=1)), (here - place)[place > 1]])
    others = np.concatenate([*later, here[place > 1]])
    pairs = np.sort(np.stack([document[ones], document[others]]), axis=0)
    first, second = np.unique(pairs, axis=1)
    return first, second


def _small_images(files: ImageFiles, items: Sequence[bytes | str]) -> bytes | None:
    """All of a document's images, small; None if that cannot be had."""
    if len(items) > _MOST_IMAGES:
        return None
    small = []
    try:
        for image in files.images(items):
            with watched(image):
                small.append(small_image(image, SIDE, Limits()))
    except (UnreadableImage, RejectedInput):
        return None
    return None if None in small else b"".join(image for image in small if image)


def _tokens(text: bytes | None) -> list[str]:
    readable = unicodedata.normalize("NFKC", (text or b"").decode(errors="replace")).casefold()
    return _TOKEN.findall(readable)


def _shingles(hashes: UInt64) -> UInt64:
    """Hashes of a text's tokens (T + _SHINGLE − 1,) -> those of its shingles (T,)."""
    count = len(hashes) - _SHINGLE + 1
    return _combined(np.stack([hashes[at : at + count] for at in range(_SHINGLE)], axis=1), 0)


def _combined(values: UInt64, seed: int) -> UInt64:
    """One hash of each row: (N, W) -> (N,)."""
    combined = np.full(len(values), seed & (2**64 - 1), np.uint64)
    for column in values.T:
        combined = splitmix64(combined * np.uint64(0x9E3779B97F4A7C15) + column + np.uint64(1))
    return combined
