"""Decoded pixels of any mode to 8-bit RGB: upright, on white, resized, converted a strip of rows at a time.

Memory is counted: an image as it was decoded, and once more as RGB where it is another mode and no larger than
WHOLE_PIXELS. A larger one is resized strip by strip too, which moves a pixel by a level or two.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from lakerank.limits import Resize
from lakerank.model.inputs import RejectedInput
from lakerank.records import RejectReason

#: Pixels of a strip, and of an image that is converted to RGB before it is resized.
STRIP_PIXELS = 2**21
WHOLE_PIXELS = 2**26

#: Bytes of images that a process decodes at once, in all its threads; one that takes more is decoded alone on its host.
DECODE_BYTES = 2**30

#: Tags of TIFF files.
BITS_PER_SAMPLE, PHOTOMETRIC, MAX_SAMPLE_VALUE, SAMPLE_FORMAT = 258, 262, 281, 339
_WHITE_IS_ZERO, _UNSIGNED = 0, 1

#: Bits that grey values are made with. A file says for how many it has room, seldom how many are used.
_DEPTHS = (8, 10, 12, 14, 16, 24)

#: Values of white in floating-point files; by how many of 255 levels pixels may miss it, or black.
_FLOAT_WHITES = (1.0, 255.0, 65535.0)
_MISSED_LEVELS = 1

#: Above 16 bits, and for fractions above 1, a range is only believed of an image that uses this much of it.
_BELIEVED = 0.25

#: What turns an image upright, by EXIF's orientation. From 5 on, rows become columns.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_COUNTED_FROM_THE_END = (3, 4, 7, 8)


class Memory:
    """An amount of bytes for threads to share; who needs more than all of it waits for all of it."""

    def __init__(self, total: int) -> None:
        self._total = self._free = total
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Have `size` bytes, once they are free; more than all while no other process of the host has more than all."""
        alone = _alone_on_host() if size > self._total else nullcontext()
        size = min(size, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            with alone:
                yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify_all()


@contextmanager
def _alone_on_host() -> Iterator[None]:
    """Within is one process of a user on this host, of as many as it has cores; the system frees a dead one's lock."""
    try:
        path = Path(tempfile.gettempdir(), f"lakerank-decoding-{os.getuid()}.lock")
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:  # no folder to write in: each process by itself
        yield
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


#: What this process decodes images in.
DECODING = Memory(DECODE_BYTES)


@dataclass(slots=True)
class _Values:
    """What is known of an image's values after some of them."""

    least: float = np.inf
    most: float = -np.inf
    finite: bool = True
    whole: bool = True
    steps: set[int] = field(default_factory=lambda: {256, 257})  # 8-bit values in 16 bits are multiples of one of them

    def add(self, values: np.ndarray) -> None:
        """Take more values into account."""
        self.finite = self.finite and bool(np.isfinite(values).all())
        if not self.finite:
            return
        self.least, self.most = min(self.least, float(values.min())), max(self.most, float(values.max()))
        self.whole = self.whole and (values.dtype.kind != "f" or bool((values == np.rint(values)).all()))
        self.steps = {step for step in self.steps if not (values % step).any()} if self.whole else set()

    def depth(self, top: int) -> int:
        """Bits that whole values are made with, of `top` that they have room for."""
        if self.steps and self.most < 2**16 <= 2**top:
            return 16
        depth = next((depth for depth in _DEPTHS if depth < top and self.most < 2**depth), top)
        if depth > 16 and self.most < _BELIEVED * 2**depth:
            raise _no_range(f"values up to {self.most:.0f}")
        return depth


@dataclass(frozen=True, slots=True)
class Greys:
    """How grey values of over 8 bits are shown: whole ones by their upper 8 bits of `depth`, others as shares of
    `white`."""

    depth: int | None
    white: float = 1.0
    unsigned: bool = False
    inverted: bool = False
    transparent: int | None = None

    def shown(self, strip: Image.Image) -> Image.Image:
        """A strip as 8-bit RGB."""
        values = _grey_values(strip, self.unsigned)
        if self.depth is None:
            grey = np.clip(np.rint(values * (255 / self.white)), 0, 255)
        else:
            grey = (values.astype(np.int64) if values.dtype.kind == "f" else values) >> (self.depth - 8)
        grey = 255 - grey if self.inverted else grey
        if self.transparent is not None:
            grey = np.where(values == self.transparent, 255, grey)
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


@dataclass(frozen=True, slots=True)
class Upright:
    """A decoded image as it is to be seen. `size`: width and height."""

    image: Image.Image
    orientation: int
    greys: Greys | None

    @classmethod
    def of(cls, image: Image.Image) -> Upright:
        """Decode an image. Raises RejectedInput: nobody can say how bright its values are; else as its decoder."""
        image.load()
        orientation = image.getexif().get(ExifTags.Base.Orientation.value, 1)
        return cls(image, orientation if orientation in _TURNS else 1, _greys(image))

    @property
    def size(self) -> tuple[int, int]:
        width, height = self.image.size
        return (height, width) if self.orientation >= 5 else (width, height)

    @property
    def _is_plain(self) -> bool:
        """Whether it is resized as it is: three channels, or one for all three, which are turned into them after."""
        return self.orientation == 1 and self.image.mode in ("RGB", "L") and not self.image.has_transparency_data

    def rows(self, first: int, end: int) -> Image.Image:
        """Rows of it, RGB."""
        width, height = self.image.size
        lines = width if self.orientation >= 5 else height
        if self.orientation in _COUNTED_FROM_THE_END:
            first, end = lines - end, lines - first
        strip = self.image.crop((first, 0, end, height) if self.orientation >= 5 else (0, first, width, end))
        flat = strip_to_rgb(strip) if self.greys is None else self.greys.shown(strip)
        turn = _TURNS.get(self.orientation)
        return flat if turn is None else flat.transpose(turn)

    def to_rgb(self) -> Image.Image:
        """All of it, RGB."""
        if self._is_plain:
            return self.image.convert("RGB") if self.image.mode == "L" else self.image
        flat = Image.new("RGB", self.size)
        for first, end in _strips(*self.size):
            flat.paste(self.rows(first, end), (0, first))
        return flat

    def resized(self, columns: int, rows: int, source: tuple[float, float], resize: Resize = "pillow") -> np.ndarray:
        """Its upper left `source` (width, height) as (rows, columns, 3) uint8, bicubic."""
        width, height = self.size
        at_once = width * height <= WHOLE_PIXELS
        if at_once and resize == "torch":
            return _resized_by_torch(self.to_rgb(), columns, rows, source)
        if at_once or (self._is_plain and self.image.mode == "RGB"):
            whole = self.image if self._is_plain else self.to_rgb()
            small = whole.resize((columns, rows), Image.Resampling.BICUBIC, box=(0.0, 0.0, *source))
            return np.asarray(small.convert("RGB"))
        narrow = Image.new("RGB", (columns, height))
        for first, end in _strips(width, height):
            strip = self.rows(first, end)
            box = (0.0, 0.0, source[0], float(end - first))
            narrow.paste(strip.resize((columns, end - first), Image.Resampling.BICUBIC, box=box), (0, first))
        box = (0.0, 0.0, float(columns), source[1])
        return np.asarray(narrow.resize((columns, rows), Image.Resampling.BICUBIC, box=box))


def _resized_by_torch(image: Image.Image, columns: int, rows: int, source: tuple[float, float]) -> np.ndarray:
    """As `Upright.resized`, of an RGB image: on processors with AVX2 torch's 8-bit filter is several times as fast as
    Pillow's, from which it differs by a level in a few of a thousand values."""
    import torch

    channels_last = torch.from_numpy(np.array(image)).unsqueeze(0).permute(0, 3, 1, 2)  # (1, 3, H, W)
    # Its own name, for `interpolate` takes no size and scale together: a JPEG at half size may end in half a pixel.
    resize = torch.ops.aten._upsample_bicubic2d_aa
    small = resize(channels_last, [rows, columns], False, rows / source[1], columns / source[0])
    return np.ascontiguousarray(small[0].permute(1, 2, 0).numpy())


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB, upright. Raises: as `Upright.of`."""
    return Upright.of(image).to_rgb()


def strip_to_rgb(strip: Image.Image) -> Image.Image:
    """Pixels of 8 bits as RGB, transparent ones on white."""
    if strip.mode == "La":
        strip = strip.convert("LA")
    if strip.has_transparency_data:
        layer = strip.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return strip.convert("RGB")


def widened(high: Image.Image, low: Image.Image) -> Image.Image:
    """Colours of 16 bits, given by their upper and their lower bytes, by the upper 8 of the bits that are used."""
    used, alpha = _Values(), _Values()
    for first, end in _strips(*high.size):
        values = _colour_values(high, low, first, end)
        used.add(values[..., :3])
        alpha.add(values[..., -1])
    shift = used.depth(16) - 8
    for first, end in _strips(*high.size):
        values = _colour_values(high, low, first, end)
        shown = values >> shift
        if values.shape[2] == 4:
            shown[..., 3] = values[..., 3] >> min(shift if alpha.most < 2 ** (shift + 8) else 8, 8)
        high.paste(Image.fromarray(shown.astype(np.uint8), high.mode), (0, first))
    return high


def _colour_values(high: Image.Image, low: Image.Image, first: int, end: int) -> np.ndarray:
    upper, lower = (np.asarray(part.crop((0, first, part.width, end))) for part in (high, low))
    return np.asarray((upper.astype(np.uint16) << 8) | lower)


def _strips(width: int, height: int) -> Iterator[tuple[int, int]]:
    """First and last row, exclusive, of each strip."""
    return pairwise([*range(0, height, max(1, STRIP_PIXELS // width)), height])


def _greys(image: Image.Image) -> Greys | None:
    """How grey values of over 8 bits are to be shown; None for other modes. Raises RejectedInput: nobody can say."""
    if image.mode[0] not in "IF":
        return None
    unsigned = image.mode != "I" or tag(image, SAMPLE_FORMAT, 2) == _UNSIGNED
    used = _Values()
    for first, end in _strips(*image.size):
        used.add(_grey_values(image.crop((0, first, image.width, end)), unsigned))
    inverted = tag(image, PHOTOMETRIC, 1) == _WHITE_IS_ZERO
    if not used.finite:
        raise _no_range("infinite values or NaN")
    if image.mode == "F" and not (used.whole and used.most > 1):
        return Greys(None, _float_white(used), inverted=inverted)
    if used.least < 0:
        raise _no_range("negative values")
    bits = tag(image, BITS_PER_SAMPLE, 16 if image.mode.startswith("I;") else 32)
    stated = tag(image, MAX_SAMPLE_VALUE, 0).bit_length() if 8 < bits <= 16 else 0
    if bits < 16:
        depth = bits
    elif stated >= 8 and tag(image, MAX_SAMPLE_VALUE, 0) == 2**stated - 1 >= used.most:
        depth = stated
    else:
        depth = used.depth(bits if unsigned or image.mode == "F" else bits - 1)
    key = image.info.get("transparency")
    return Greys(depth, unsigned=unsigned, inverted=inverted, transparent=key if isinstance(key, int) else None)


def _grey_values(strip: Image.Image, unsigned: bool) -> np.ndarray:
    values: np.ndarray = np.asarray(strip)
    return values.view(np.uint32) if unsigned and strip.mode == "I" else values


def _float_white(used: _Values) -> float:
    """The value of white of fractions that use these."""
    allowed = _MISSED_LEVELS / 255
    white = next((white for white in _FLOAT_WHITES if used.most <= white * (1 + allowed)), None)
    dark = white is None or (white > 1 and used.most < _BELIEVED * white)
    if white is None or dark or used.least < -allowed * white:
        raise _no_range(f"values from {used.least:g} to {used.most:g}")
    return white


def tag(image: Image.Image, number: int, default: int) -> int:
    """A TIFF file's tag, the first of its values; the default for other files."""
    value = getattr(image, "tag_v2", {}).get(number, default)
    return int(value[0] if isinstance(value, tuple) else value)


def _no_range(found: str) -> RejectedInput:
    detail = f"{found}: which of them is white is not known; convert it to 8 bits"
    return RejectedInput(RejectReason.IMAGE_UNSUPPORTED_FORMAT, detail)
