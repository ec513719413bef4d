"""What one pair may cost, and the scale that two rerankers' logits share: plain values that config and models use."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from lakerank.errors import ConfigError

#: Formats of images that are read, by Pillow's names; no others are ever opened.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP")


#: What is read of an image file of several pages or frames.
Frames = Literal["first", "all"]

#: Whose bicubic filter resizes images.
Resize = Literal["pillow", "torch"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one pair may cost: lengths in tokens, sizes in pixels and bytes. Defaults are jina-reranker-m0's.

    `frames`: what is read of an image file of several pages or frames. `resize`: who resizes images.
    """

    max_length: int = 10240
    max_query_length: int = 512
    min_pixels: int = 3136
    max_pixels: int = 602_112
    max_source_pixels: int = 178_956_970
    max_source_bytes: int = 256 * 2**20
    frames: Frames = "first"
    resize: Resize = "pillow"

    def __post_init__(self) -> None:
        faults = [
            f"{name} must be positive" for name, value in asdict(self).items() if isinstance(value, int) and value < 1
        ]
        if self.max_query_length * 4 > self.max_length * 3:  # a family may allow it less: half, most of them
            share = f"max_query_length {self.max_query_length} is over three quarters of max_length {self.max_length}"
            faults.append(share)
        if self.min_pixels > self.max_pixels:
            faults.append(f"min_pixels {self.min_pixels} is above max_pixels {self.max_pixels}")
        if self.frames not in ("first", "all"):
            faults.append(f"frames is {self.frames!r}, neither 'first' nor 'all'")
        if self.resize not in ("pillow", "torch"):
            faults.append(f"resize is {self.resize!r}, neither 'pillow' nor 'torch'")
        if faults:
            raise ConfigError(faults)

    def identity(self) -> dict[str, Any]:
        """The limits that scores depend on, for fingerprints of scorers: the first ones had no `frames` or `resize`."""
        later = {("frames", "first"), ("resize", "pillow")}
        return {name: value for name, value in asdict(self).items() if (name, value) not in later}


@dataclass(frozen=True, slots=True)
class LogitScale:
    """A reranker's logits on a scale that it shares with another: scale × raw + bias, relevance is its sigmoid."""

    scale: float
    bias: float


@dataclass(frozen=True, slots=True)
class Listwise:
    """How lists are scored. `passes`: the mean of that many orders, the second reversed and others drawn.

    `window`: documents of one prompt at most, `stride`: by how many a window moves; None: what is published.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    passes: int = 1
    window: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        window, stride = self.window or 2, self.stride or 1
        faults = [f"{name} must be positive" for name, value in asdict(self).items() if value is not None and value < 1]
        if self.window == 1 or stride > window:
            faults.append(f"window {self.window}, stride {self.stride}: a window has at least 2 and moves by no more")
        if faults:
            raise ConfigError(faults)
