"""Fuzzing of images: small files of every format that is read, with bytes changed, cut out, doubled or left off."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from lakerank.limits import IMAGE_FORMATS, Limits
from lakerank.model.inputs import RejectedInput
from lakerank.model.preprocess.images import PatchShape, count_frames, load_frames, load_patches, small_jpeg
from lakerank.plan.index import _image_size

#: Small enough that a header may promise it and the decoder fill it, in milliseconds.
LIMITS = Limits(max_source_pixels=2**18)

_MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "I;16", "I", "F"),
    "GIF": ("L", "P"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
}
_OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "PNG": ({}, {"save_all": True, "append_images": [Image.new("L", (24, 20))]}),
    "JPEG": ({}, {"progressive": True}),
    "WEBP": ({}, {"lossless": True}),
    "TIFF": ({}, {"compression": "tiff_lzw"}, {"compression": "packbits"}, {"big_tiff": True}),
    "GIF": ({}, {"save_all": True, "append_images": [Image.new("L", (24, 20), 9)]}),
    "BMP": ({},),
}


@cache
def seeds() -> tuple[bytes, ...]:
    """Whole files: each format in its modes and layouts."""
    values = np.random.default_rng(7).integers(0, 256, (20, 24, 4), np.uint8)
    files = []
    for image_format in IMAGE_FORMATS:
        for mode in _MODES[image_format]:
            if mode in ("I;16", "F"):
                image = Image.fromarray(values[..., 0].astype(np.uint16 if mode == "I;16" else np.float32))
            else:
                image = Image.fromarray(values).convert("RGB" if mode == "LAB" else mode).convert(mode)
            for options in _OPTIONS[image_format]:
                stream = io.BytesIO()
                image.save(stream, image_format, **options)
                files.append(stream.getvalue())
    return tuple(files)


def mutated(data: bytes, dice: random.Random) -> bytes:
    """The file with some faults; most are where headers are."""
    changed = bytearray(data)
    for _ in range(dice.randint(1, 6)):
        place = dice.randrange(min(len(changed), dice.choice((32, 200, len(changed)))))
        match dice.randrange(6):
            case 0 | 1:
                changed[place] = dice.randrange(256)
            case 2:
                changed[place] ^= 1 << dice.randrange(8)
            case 3:
                changed[place : place + dice.choice((1, 2, 4))] = dice.choice(
                    (b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff")
                )
            case 4:
                del changed[place : place + dice.randint(1, 9)]
            case _:
                changed[place:place] = changed[place : place + dice.randint(1, 40)]
        if not changed:
            return b""
    return bytes(changed[: dice.randrange(len(changed))] if dice.random() < 0.1 else changed)


def outcomes(seed: int) -> Iterator[str]:
    """What becomes of one damaged file after another, without end: "result" or "reject". Raises whatever is neither."""
    dice = random.Random(seed)
    while True:
        data = mutated(dice.choice(seeds()), dice)
        pa.array(_image_size(data) or (), pa.int32())  # as the index keeps them
        small_jpeg(data, 64)
        try:
            patches = load_patches(data, LIMITS, PatchShape())
            assert count_frames(data) >= 1
            for _ in load_frames(data, replace(LIMITS, frames="all"), PatchShape()):
                pass
        except RejectedInput as rejected:
            if len(rejected.detail) > 300:
                raise AssertionError(f"a detail of {len(rejected.detail)} characters") from rejected
            yield "reject"
            continue
        if patches.pixels.dtype != np.uint8 or len(patches.pixels) != patches.grid[0] * patches.grid[1]:
            raise AssertionError(f"patches {patches.pixels.shape} of {patches.grid}")
        yield "result"
