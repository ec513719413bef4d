"""What a document or query will cost, estimated from its size alone, before anything is decoded.

Costs are in tokens of the language model: the unit in which work is forecast and cut into even units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]

#: Bytes of UTF-8 text per token. Qwen2's vocabulary averages about 4 for English and less for other scripts, where a
#: character takes 2–3 bytes: bytes are therefore a steadier yardstick than characters.
BYTES_PER_TOKEN = 4.0

#: Side in pixels of the square one visual token stands for: patch 14 × merge 2 (Qwen2-VL).
VISUAL_TOKEN_SIDE = 28

#: A visual token passes the vision encoder before the language model: 5,473 + 2,157 GFLOP for 776 tokens at 2B size.
VISUAL_TOKEN_COST = 3.5

#: Tokens of the prompt around a document, or around a query with its score token.
TEMPLATE_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Sizing:
    """The limits that bound an input's cost: pixels after resizing, and tokens of text."""

    min_pixels: int
    max_pixels: int
    max_text_tokens: int


def input_cost(text_bytes: Int64, width: Int64, height: Int64, sizing: Sizing) -> Int64:
    """Cost of each input in tokens: (N,) each -> (N,). A width of 0 means that there is no image."""
    text = np.minimum(np.ceil(text_bytes / BYTES_PER_TOKEN), sizing.max_text_tokens)
    pixels = np.clip(width * height, sizing.min_pixels, sizing.max_pixels)
    visual = np.where(width > 0, np.maximum(1, np.round(pixels / VISUAL_TOKEN_SIDE**2)), 0)
    return (TEMPLATE_TOKENS + text + np.ceil(visual * VISUAL_TOKEN_COST)).astype(np.int64)


def even_bins(costs: list[int], target: int) -> list[int]:
    """Number the bins of consecutive items so that each bin costs at least about `target`: one bin number an item."""
    bins: list[int] = []
    current, filled = 0, 0
    for cost in costs:
        if filled and filled + cost / 2 > target:
            current, filled = current + 1, 0
        bins.append(current)
        filled += cost
    return bins
