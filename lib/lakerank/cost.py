"""What a document or query will cost in model tokens, estimated from its size alone, before anything is decoded."""

from __future__ import annotations

import math

#: Bytes of UTF-8 text per token. Qwen2's vocabulary averages about 4 for English and less for other scripts, where a
#: character takes 2–3 bytes: bytes are therefore a steadier yardstick than characters.
BYTES_PER_TOKEN = 4.0

#: Side in pixels of the square one visual token stands for: patch 14 × merge 2 (Qwen2-VL).
VISUAL_TOKEN_SIDE = 28

#: Tokens of the prompt around a document, and around a query with its score token.
DOCUMENT_TEMPLATE_TOKENS = 8
QUERY_TEMPLATE_TOKENS = 8


def text_tokens(text_bytes: int) -> int:
    """Tokens of a text of so many UTF-8 bytes."""
    return math.ceil(text_bytes / BYTES_PER_TOKEN)


def visual_tokens(width: int, height: int, min_pixels: int, max_pixels: int) -> int:
    """Visual tokens of an image of `width` × `height` pixels after resizing between `min_pixels` and `max_pixels`."""
    pixels = min(max(width * height, min_pixels), max_pixels)
    return max(1, round(pixels / VISUAL_TOKEN_SIDE**2))
