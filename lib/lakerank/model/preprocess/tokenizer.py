"""Each side of a pair to token ids and M-RoPE positions, cut to its budget; no side knows its partner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from lakerank.errors import CheckpointError
from lakerank.limits import Limits
from lakerank.model.checkpoint import Settings, read_json
from lakerank.model.inputs import EncodedInput, Grid, Patches, RejectedInput
from lakerank.model.jina_m0.prompt import DOCUMENT_HEAD, DOCUMENT_TAIL, QUERY_HEAD, Budgets, budgets
from lakerank.records import RejectReason

_NAMED_IDS = ("vision_start_token_id", "vision_end_token_id", "image_token_id")

#: What NFC may do to the bytes of a text at most: three times as many (Unicode's FAQ on normalisation), and as few as
#: a quarter of the characters.
_NORMALISED_BYTES = 3
_NORMALISED_CHARACTERS = 4


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids that a checkpoint's config.json names."""

    vision_start: int
    vision_end: int
    image: int
    score: int
    pad: int


def read_special_tokens(folder: Path, settings: Settings) -> SpecialTokens:
    """The ids that config.json names, and the padding token's from wherever it stands.

    Raises:
        CheckpointError: one is not named.
    """
    config = settings.config
    missing = [name for name in _NAMED_IDS if not isinstance(config.get(name), int)]
    if missing:
        raise CheckpointError(f"{folder}: config.json names no {', '.join(missing)}")
    start, end, image = (int(config[name]) for name in _NAMED_IDS)
    pad = config.get("pad_token_id", (config.get("text_config") or {}).get("pad_token_id"))
    if pad is None:
        pad = _padding_token(folder)
    return SpecialTokens(start, end, image, score=settings.score_token_id, pad=int(pad))


def _padding_token(folder: Path) -> int:
    """The id of the padding token that tokenizer_config.json names; 0 without one, for padding is never attended to."""
    file = folder / "tokenizer_config.json"
    token = read_json(file).get("pad_token") if file.is_file() else None
    content = token.get("content") if isinstance(token, dict) else token
    found = None if content is None else Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(content)
    return 0 if found is None else int(found)


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

    def fit(self, text: str, limit: int, assemble: Callable[[str], list[int]]) -> tuple[list[int], bool]:
        """Cut `text` until the side it makes is at most `limit` tokens; says whether anything was cut."""
        window = text[: limit * self.longest * _NORMALISED_CHARACTERS]
        side = assemble(window)
        if len(side) <= limit:
            return side, len(window) < len(text)
        token_ids = self.encode(window)
        keep = min(len(token_ids), limit - (len(side) - len(token_ids)))
        while len(side) > limit:
            side = assemble(self.decode(token_ids[: max(keep, 0)]))
            keep -= max(1, len(side) - limit)
        return side, True


class PromptTokenizer:
    """Builds sides. Safe to call from several threads."""

    def __init__(self, tokenizer: Tokenizer, special: SpecialTokens, limits: Limits, merge: int) -> None:
        self._text = TextTokenizer(tokenizer)
        self._special = special
        self._merge = merge
        self._document_template = len(self._text.encode(DOCUMENT_HEAD)) + len(self._text.encode(DOCUMENT_TAIL))
        self._query_template = len(self._text.encode(QUERY_HEAD))
        self.budgets: Budgets = budgets(limits, self._document_template, self._query_template)

    def document(self, text: str | None, image: Patches | None = None, image_key: str = "") -> EncodedInput:
        """The document's side: template, visual tokens, text.

        Raises:
            RejectedInput: nothing in it, text that is not Unicode, or an image that does not fit.
        """
        visual = self._visual_tokens(image, self._document_template)
        plain = plain_text(text, image, RejectReason.EMPTY_DOCUMENT)
        limit = self.budgets.document
        kept, cut = self._cut_published(plain, limit - self._document_template - visual)

        def assemble(body: str) -> list[int]:
            return self._assemble(DOCUMENT_HEAD, visual, body + DOCUMENT_TAIL)

        token_ids, cut_more = self._text.fit(kept, limit, assemble)
        return self._side(token_ids, image, image_key, truncated=cut or cut_more)

    def query(self, text: str | None, image: Patches | None = None, image_key: str = "") -> EncodedInput:
        """The query's side: template, visual tokens, text, score token.

        Raises:
            RejectedInput: nothing in it, text that is not Unicode, or an image that does not fit.
        """
        visual = self._visual_tokens(image, self._query_template + 1)
        plain = plain_text(text, image, RejectReason.EMPTY_QUERY)
        limit = self.budgets.query + visual - 1

        def assemble(body: str) -> list[int]:
            return self._assemble(QUERY_HEAD, visual, body)

        token_ids, cut = self._text.fit(plain, limit, assemble)
        return self._side([*token_ids, self._special.score], image, image_key, truncated=cut)

    def _visual_tokens(self, image: Patches | None, template: int) -> int:
        """Tokens that an image takes, its two markers included."""
        if image is None:
            return 0
        visual = image.grid[0] * image.grid[1] // self._merge**2 + 2
        if visual + template > self.budgets.visual:
            detail = f"{visual} visual tokens do not fit in {self.budgets.visual}: lower max_pixels or raise max_length"
            raise RejectedInput(RejectReason.INPUT_TOO_LONG, detail)
        return visual

    def _cut_published(self, text: str, most: int) -> tuple[str, bool]:
        """Cut a text to `most` tokens as published: encode, cut, decode (what comes out is encoded again)."""
        if len(text) <= most and len(text.encode("utf-8", "surrogatepass")) * _NORMALISED_BYTES <= most:
            return text, False
        window = most * self._text.longest * _NORMALISED_CHARACTERS
        token_ids = self._text.encode(text[:window])
        if len(token_ids) <= most:
            return text, False
        return self._text.decode(token_ids[:most]), True

    def _assemble(self, head: str, visual: int, body: str) -> list[int]:
        """Tokens of a side without the score token. Special tokens stand apart, so that text never merges with them."""
        if not visual:
            return self._text.encode(head + body)
        special = self._special
        image = [special.vision_start, *[special.image] * (visual - 2), special.vision_end]
        return [*self._text.encode(head), *image, *self._text.encode(body)]

    def _side(self, token_ids: list[int], image: Patches | None, image_key: str, truncated: bool) -> EncodedInput:
        return encoded_input(token_ids, image, image_key, truncated, self._special.image, self._merge)


def encoded_input(
    token_ids: list[int], image: Patches | None, image_key: str, truncated: bool, image_token: int, merge: int
) -> EncodedInput:
    """A side of these tokens, its visual tokens among them."""
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


def check_tokenizer(tokenizer: Tokenizer, special: SpecialTokens, vocabulary: int, source: str) -> None:
    """Refuse a tokenizer that does not belong to its network.

    Raises:
        CheckpointError: a special token is missing, an id has no embedding, or a special token's name in a text would
            become that token.
    """
    faults = []
    for name in ("vision_start", "vision_end", "image", "score", "pad"):
        token_id = getattr(special, name)
        token = tokenizer.id_to_token(token_id)
        if not 0 <= token_id < vocabulary:
            faults.append(f"{name} token id {token_id} is outside the vocabulary of {vocabulary}")
        elif token is None:
            faults.append(f"{name} token id {token_id} is not in tokenizer.json")
        elif name not in ("score", "pad") and token_id in tokenizer.encode(f"a {token} b").ids:
            faults.append(f"{name} token {token} is not marked special in tokenizer.json")
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= vocabulary:
        faults.append(f"token ids up to {largest} but an embedding of {vocabulary}")
    if faults:
        raise CheckpointError(f"{source}: tokenizer.json and config.json do not fit: {'; '.join(faults)}")
