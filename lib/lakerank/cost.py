"""Cost of documents and queries, estimated from their sizes before anything is decoded.

Costs are in tokens of the language model: the unit of forecasts, and of the even cut into work units.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import get_type_hints

import numpy as np
import numpy.typing as npt

from lakerank.errors import ConfigError
from lakerank.limits import Listwise

Int64 = npt.NDArray[np.int64]

#: Bytes of UTF-8 text per token. Qwen2's vocabulary averages about 4 for English and less for other scripts, where a
#: character takes 2–3 bytes: bytes are therefore a steadier yardstick than characters.
BYTES_PER_TOKEN = 4.0

#: Side in pixels of the square that a visual token covers: patch 14 × merge 2 (Qwen2-VL).
VISUAL_TOKEN_SIDE = 28

#: A visual token costs the vision encoder, then the language model: 5,473 + 2,157 GFLOP for 776 tokens at 2B size.
VISUAL_TOKEN_COST = 3.5

#: Tokens of the prompt around a document, or around a query with its score token.
TEMPLATE_TOKENS = 8

#: A prompt of so many tokens costs as much again in attention: 28 layers of 16 heads of 128 beside 0.6 G weights.
ATTENTION_TOKENS = 10_000

#: Operations a second that any device does.
SLOWEST_FLOPS = 1e10


@dataclass(frozen=True, slots=True)
class Sizing:
    """The limits that bound an input's cost: pixels after resizing, and tokens of text.

    `max_plain_text_tokens`: of a text without an image, where another model scores it; None for the same limit.
    `all_frames`: whether all frames of an image file are read. An input's images have as many tokens as a text may.
    """

    min_pixels: int
    max_pixels: int
    max_text_tokens: int
    max_plain_text_tokens: int | None = None
    all_frames: bool = False


@dataclass(frozen=True, slots=True)
class CostProfile:
    """How a reranker's cost follows from the tokens of documents and queries.

    `document_major`: a document is read once for all queries of its group; else only its image's encoding is shared.
    `accepts_images`: else a pair with an image is rejected unread. `weight`: cost of a token relative to the run's
    largest model.
    """

    document_major: bool = True
    accepts_images: bool = True
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Calibration:
    """Measured speed of one device, from `jobs/benchmark.py --calibration FILE`.

    `tokens_per_second` are tokens of the language model as this module counts them: a visual token weighs
    VISUAL_TOKEN_COST. `fetch_bytes_per_second` are useful bytes of documents that one task fetches.
    """

    device: str
    dtype: str
    parameters: int
    tokens_per_second: float
    fetch_bytes_per_second: float

    def to_json(self) -> str:
        """The calibration file's content."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @staticmethod
    def from_json(text: str | bytes, source: str = "calibration") -> Calibration:
        """Parse a calibration file; unknown keys are ignored.

        Raises:
            ConfigError: names `source` and every fault.
        """
        advice = "rewrite the file with jobs/benchmark.py --calibration FILE"
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ConfigError([f"{source}: not JSON ({error}); {advice}"]) from error
        if not isinstance(values, dict):
            raise ConfigError([f"{source}: expected a JSON object, found {type(values).__name__}; {advice}"])
        faults = []
        for name, kind in get_type_hints(Calibration).items():
            value = values.get(name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
            if not (is_number if kind in (int, float) else isinstance(value, str) and value):
                expected = "a number above 0" if kind in (int, float) else "a name"
                found = f"expected {expected} (found {value!r})" if name in values else "missing"
                faults.append(f"{source}: {name}: {found}; {advice}")
        if faults:
            raise ConfigError(faults)
        return Calibration(**{name: kind(values[name]) for name, kind in get_type_hints(Calibration).items()})


def tflop(parameters: int, tokens: int) -> float:
    """Arithmetic of a forward pass: two operations a weight and token (a visual token's VISUAL_TOKEN_COST is in)."""
    return 2 * parameters * tokens / 1e12


def device_seconds(calibration: Calibration, parameters: int, tokens: int) -> float:
    """Time on a device of the calibration's kind; another model's tokens cost by its number of weights."""
    return tokens / calibration.tokens_per_second * parameters / calibration.parameters


def longest_seconds(calibration: Calibration | None, parameters: int, tokens: int) -> float:
    """The same; without a calibration, on a device slower than any that people score on."""
    if calibration is not None:
        return device_seconds(calibration, parameters, tokens)
    return 1e12 * tflop(parameters, tokens) / SLOWEST_FLOPS


def input_cost(text_bytes: Int64, width: Int64, height: Int64, sizing: Sizing, images: Int64 | None = None) -> Int64:
    """Cost of each input in tokens: (N,) each -> (N,). A width of 0 means that there is no image.

    `images`: how many of that size there are; None for one each.
    """
    plain = sizing.max_text_tokens if sizing.max_plain_text_tokens is None else sizing.max_plain_text_tokens
    text = np.minimum(np.ceil(text_bytes / BYTES_PER_TOKEN), np.where(width > 0, sizing.max_text_tokens, plain))
    visual = visual_tokens(width, height, sizing, images)
    return np.asarray(TEMPLATE_TOKENS + text + np.ceil(visual * VISUAL_TOKEN_COST), dtype=np.int64)


def list_costs(tokens: Int64, documents: Int64, listwise: Listwise) -> Int64:
    """Cost of lists by their tokens and documents: (L,) each -> (L,). Windows that overlap read a document again."""
    within = np.minimum(documents, listwise.window or documents)
    again = np.where(within < documents, within / (listwise.stride or within), 1.0)
    attention = tokens * (within / documents) / ATTENTION_TOKENS
    return np.asarray(np.ceil(listwise.passes * again * tokens * (1 + attention)), dtype=np.int64)


def visual_tokens(width: Int64, height: Int64, sizing: Sizing, images: Int64 | None = None) -> Int64:
    """Visual tokens of each input's images after resizing: (N,) each -> (N,), 0 without an image."""
    pixels = np.clip(width * height, sizing.min_pixels, sizing.max_pixels)
    tokens = np.where(width > 0, np.maximum(1, np.round(pixels / VISUAL_TOKEN_SIDE**2)), 0)
    if images is not None:
        tokens = np.minimum(tokens * np.maximum(1, images), np.maximum(tokens, sizing.max_text_tokens))
    return np.asarray(tokens, dtype=np.int64)


def vision_cost(visual: Int64) -> Int64:
    """The vision encoder's share of the cost of visual tokens: (N,) -> (N,)."""
    return np.asarray(np.ceil(visual * VISUAL_TOKEN_COST) - visual, dtype=np.int64)
