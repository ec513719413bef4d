"""Texts to token ids, cut to a limit, and documents and queries to encoded inputs with M-RoPE positions."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from lakerank.errors import CheckpointError
from lakerank.model.checkpoint import is_panic, reading
from lakerank.model.inputs import EncodedInput, Grid, NamedImage, Patches, RejectedInput, Template, VisionTokens
from lakerank.records import RejectReason

#: What NFC may do to the bytes of a text at most: three times as many (Unicode's FAQ on normalisation), and as few as
#: a quarter of the characters.
_NORMALISED_BYTES = 3
_NORMALISED_CHARACTERS = 4

#: Tokens that cutting a text within a word may make of the word at most, where the whole word is one: WordPiece reads a
#: word of more than 100 characters as one unknown token.
_WORD_TOKENS = 100

_TRIAL = "import sys, tokenizers; tokenizers.Tokenizer.from_file(sys.argv[1])"


def read_tokenizer(path: Path, *, names_are_text: bool = True) -> Tokenizer:
    """Load tokenizer.json so that it neither pads nor cuts; a special token's name is text, or the token.

    Raises CheckpointError: it is no tokenizer.
    """
    with reading(str(path)):
        _try_alone(path)
        tokenizer = plain_tokenizer(Tokenizer.from_file(str(path)), names_are_text)
        if not tokenizer.encode("a", add_special_tokens=False).ids:
            raise ValueError("it makes no token of a text; see its model and post_processor")
        return tokenizer


def _try_alone(path: Path) -> None:
    """Load tokenizer.json in a process of its own: some damaged ones abort the library, where it should raise.

    Raises CheckpointError: that process was ended by a signal, memory apart.
    """
    trial = subprocess.run([sys.executable, "-c", _TRIAL, str(path)], capture_output=True, check=False)  # noqa: S603
    if trial.returncode < 0 and trial.returncode != -signal.SIGKILL:
        ended = signal.Signals(-trial.returncode).name
        raise CheckpointError(f"{path}: damaged: it ends its reader ({ended} in the tokenizers library); copy it again")


def plain_tokenizer(tokenizer: Tokenizer, names_are_text: bool) -> Tokenizer:
    """A tokenizer as `read_tokenizer` loads it."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = names_are_text
    return tokenizer


class TextTokenizer:
    """Texts to token ids, cut to fit. Safe to call from several threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.longest = max(len(token) for token in tokenizer.get_vocab())

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Raises RejectedInput: the text is not Unicode, or too much for the tokenizer."""
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError) as error:  # lone surrogates: a str, but not Unicode text
            raise RejectedInput(RejectReason.TEXT_UNDECODABLE, "the text holds lone surrogates") from error
        except BaseException as error:
            if not is_panic(error):
                raise
            detail = "the tokenizer fails on it: a pattern of tokenizer.json needs too long"
            raise RejectedInput(RejectReason.TEXT_UNDECODABLE, detail) from error
        return ids

    def decode(self, token_ids: list[int]) -> str:
        """The text of token ids."""
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=False)
        return text

    def first(self, text: str, most: int) -> list[int]:
        """More than `most` tokens from the start of a text, or all that there are."""
        window = (most + 1) * self.longest * _NORMALISED_CHARACTERS
        while True:
            ids = self.encode(text[:window])
            if len(ids) > most + _WORD_TOKENS or window >= len(text):
                return ids
            window *= 2  # of white space, for instance, there is hardly a token

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


class TemplateTokenizer:
    """Encodes documents, or queries, within their template. Safe to call from several threads.

    `around`: token ids of the template's `before` and `after`.
    """

    def __init__(
        self,
        text: TextTokenizer,
        template: Template,
        around: tuple[list[int], list[int]],
        vision: VisionTokens,
        *,
        document: bool,
    ) -> None:
        self._text, self._template, self._vision, self._document = text, template, vision, document
        self._before, self._after = around
        self._prefix = text.encode(template.prefix)
        self.template_tokens = sum(map(len, (*around, self._prefix, text.encode(template.suffix))))

    def encode(self, text: str | None, images: Iterable[NamedImage], limit: int, visual_limit: int) -> EncodedInput:
        """Tokens of an input, at most `limit`, to which a query's visual tokens are not counted.

        Of `images` as many are pulled as fit with the template into `visual_limit`, and one more: the rest is left out.

        Raises:
            RejectedInput: it is empty, holds what the template has no place for, is not Unicode, or its first image or
                the template itself does not fit.
        """
        if limit <= self.template_tokens:
            detail = f"its instruction leaves {max(0, limit)} tokens to a query; raise max_query_length"
            raise RejectedInput(RejectReason.INPUT_TOO_LONG, detail)
        remaining = iter(images)
        first = next(remaining, None)
        plain = self._plain_text(text, has_image=first is not None)
        kept_images, visual = self._fitting(() if first is None else chain((first,), remaining), visual_limit)
        if not self._document:
            limit += len(visual)
        kept, cut = plain, False
        if self._template.cuts_text_alone:
            kept, cut = self._text.cut(plain, limit - self.template_tokens - len(visual))
        token_ids, cut_joined = self._text.fit(kept, limit, lambda body: self._assemble(visual, body))
        ids = np.array(token_ids, dtype=np.int64)
        positions, end = self._positions(len(ids), [image for _, image in kept_images])
        return EncodedInput(ids, positions, end, tuple(kept_images), cut or cut_joined)

    def _positions(self, tokens: int, images: Sequence[Patches]) -> tuple[np.ndarray, int]:
        """M-RoPE positions (3, tokens), and that of what follows."""
        merge, parts, row, end = self._vision.merge, [], 0, 0
        start = len(self._before) + len(self._prefix)
        for image in images:
            start += 1  # the marker before it
            parts += [text_positions(end, start - row), image_positions(end + start - row, image.grid, merge)]
            row, end = start + self._count(image), end + start - row + max(image.grid) // merge
            start = row + 1
        return np.concatenate((*parts, text_positions(end, tokens - row)), axis=1), end + tokens - row

    def _plain_text(self, text: str | None, has_image: bool) -> str:
        """The text to tokenise, "" where there is none beside an image."""
        plain = text if text is not None and text.strip() else ""
        if not plain and not has_image:
            empty = RejectReason.EMPTY_DOCUMENT if self._document else RejectReason.EMPTY_QUERY
            raise RejectedInput(empty, "neither text nor image")
        contents = (("text", bool(plain), self._template.text), ("an image", has_image, self._template.image))
        for name, present, allowed in contents:
            if present and not allowed:
                item = "document" if self._document else "query"
                raise RejectedInput(RejectReason.MODALITY_UNSUPPORTED, f"{name} in the {item}")
        return plain

    def _fitting(self, images: Iterable[NamedImage], limit: int) -> tuple[list[NamedImage], list[int]]:
        """The first images that fit, and their tokens, two markers each included: by id, so that no text merges."""
        kept: list[NamedImage] = []
        visual: list[int] = []
        for name, image in images:
            count = self._count(image)
            if len(visual) + count + 2 + self.template_tokens > limit:
                if kept:
                    break
                room = f" in {limit}" if self._template.names_limit else ""
                detail = f"{count + 2} visual tokens do not fit{room}: lower max_pixels or raise max_length"
                raise RejectedInput(RejectReason.INPUT_TOO_LONG, detail)
            kept.append((name, image))
            visual += [self._vision.start, *[self._vision.image] * count, self._vision.end]
        return kept, visual

    def _count(self, image: Patches) -> int:
        return image.grid[0] * image.grid[1] // self._vision.merge**2

    def _assemble(self, visual: list[int], body: str) -> list[int]:
        if not visual:
            joined = self._text.encode(self._template.prefix + body + self._template.suffix)
            return [*self._before, *joined, *self._after]
        return [*self._before, *self._prefix, *visual, *self._text.encode(body + self._template.suffix), *self._after]


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
