"""Texts to token ids, cut to a limit, and tokens to encoded inputs with M-RoPE positions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from lakerank.model.inputs import EncodedInput, Grid, Patches, RejectedInput
from lakerank.records import RejectReason

#: What NFC may do to the bytes of a text at most: three times as many (Unicode's FAQ on normalisation), and as few as
#: a quarter of the characters.
_NORMALISED_BYTES = 3
_NORMALISED_CHARACTERS = 4


def read_tokenizer(path: Path) -> Tokenizer:
    """Load tokenizer.json so that it neither adds, pads, cuts nor takes a special token's name for the token."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer


class TextTokenizer:
    """Texts to token ids, cut to fit. Safe to call from several threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.longest = max(len(token) for token in tokenizer.get_vocab())

    def encode(self, text: str) -> list[int]:
        """Token ids of a text.

        Raises:
            RejectedInput: the text is not Unicode.
        """
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError) as error:  # lone surrogates: a str, but not Unicode text
            raise RejectedInput(RejectReason.TEXT_UNDECODABLE, "the text holds lone surrogates") from error
        return ids

    def decode(self, token_ids: list[int]) -> str:
        """The text of token ids."""
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=False)
        return text

    def cut(self, text: str, most: int) -> tuple[str, bool]:
        """Cut a text to `most` tokens as published: encode, cut, decode (what comes out is encoded again)."""
        if len(text) <= most and len(text.encode("utf-8", "surrogatepass")) * _NORMALISED_BYTES <= most:
            return text, False
        window = most * self.longest * _NORMALISED_CHARACTERS
        token_ids = self.encode(text[:window])
        if len(token_ids) <= most:
            return text, False
        return self.decode(token_ids[:most]), True

    def fit(self, text: str, limit: int, assemble: Callable[[str], list[int]]) -> tuple[list[int], bool]:
        """Cut `text` until `assemble` makes at most `limit` tokens of it: those, and whether anything was cut."""
        window = text[: limit * self.longest * _NORMALISED_CHARACTERS]
        assembled = assemble(window)
        if len(assembled) <= limit:
            return assembled, len(window) < len(text)
        token_ids = self.encode(window)
        keep = min(len(token_ids), limit - (len(assembled) - len(token_ids)))
        while len(assembled) > limit:
            assembled = assemble(self.decode(token_ids[: max(keep, 0)]))
            keep -= max(1, len(assembled) - limit)
        return assembled, True


def encoded_input(
    token_ids: list[int], image: Patches | None, image_key: str, truncated: bool, image_token: int, merge: int
) -> EncodedInput:
    """An input of these tokens, its visual tokens among them."""
    ids = np.array(token_ids, dtype=np.int64)
    if image is None:
        return EncodedInput(ids, text_positions(0, len(ids)), len(ids), None, "", truncated)
    start = int(np.argmax(ids == image_token))
    stop = start + image.grid[0] * image.grid[1] // merge**2
    after = start + max(image.grid) // merge
    parts = (
        text_positions(0, start),
        image_positions(start, image.grid, merge),
        text_positions(after, len(ids) - stop),
    )
    return EncodedInput(ids, np.concatenate(parts, axis=1), after + len(ids) - stop, image, image_key, truncated)


def text_positions(start: int, count: int) -> np.ndarray:
    """M-RoPE positions of `count` text tokens: (3, count) int64, the same in time, height and width."""
    return np.tile(np.arange(start, start + count, dtype=np.int64), (3, 1))


def image_positions(start: int, grid: Grid, merge: int) -> np.ndarray:
    """M-RoPE positions of an image's visual tokens: (3, tokens) int64.

    What follows starts at `start` + the longer side, in merged patches. Source: Qwen2-VL, section 2.1.
    """
    rows, columns = grid[0] // merge, grid[1] // merge
    height, width = np.divmod(np.arange(rows * columns, dtype=np.int64), columns)
    return np.stack((np.zeros_like(height), height, width)) + start


def plain_text(text: str | None, image: Patches | None, empty: RejectReason) -> str:
    """The text to tokenise, "" where there is none beside an image."""
    if text is not None and text.strip():
        return text
    if image is None:
        raise RejectedInput(empty, "neither text nor image")
    return ""
