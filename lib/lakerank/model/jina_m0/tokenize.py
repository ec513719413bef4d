"""Queries and documents of jina-reranker-m0 to token ids, cut to their limits; neither depends on its partner."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from lakerank.errors import CheckpointError
from lakerank.limits import Limits
from lakerank.model.checkpoint import read_json
from lakerank.model.inputs import EncodedInput, Patches, RejectedInput
from lakerank.model.jina_m0.config import Settings
from lakerank.model.jina_m0.prompt import DOCUMENT_PREFIX, DOCUMENT_SUFFIX, QUERY_PREFIX, TokenLimits, token_limits
from lakerank.model.preprocess.tokenizer import TextTokenizer, encoded_input, plain_text
from lakerank.records import RejectReason

_NAMED_IDS = ("vision_start_token_id", "vision_end_token_id", "image_token_id")


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
    token_id = None if content is None else Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(content)
    return 0 if token_id is None else int(token_id)


class PromptTokenizer:
    """Encodes documents and queries. Safe to call from several threads."""

    def __init__(self, tokenizer: Tokenizer, special: SpecialTokens, limits: Limits, merge: int) -> None:
        self._text = TextTokenizer(tokenizer)
        self._special = special
        self._merge = merge
        self._document_template = len(self._text.encode(DOCUMENT_PREFIX)) + len(self._text.encode(DOCUMENT_SUFFIX))
        self._query_template = len(self._text.encode(QUERY_PREFIX))
        self.limits: TokenLimits = token_limits(limits, self._document_template, self._query_template)

    def document(self, text: str | None, image: Patches | None = None, image_key: str = "") -> EncodedInput:
        """A document's tokens: template, visual tokens, text.

        Raises:
            RejectedInput: nothing in it, text that is not Unicode, or an image that does not fit.
        """
        visual = self._visual_tokens(image, self._document_template)
        plain = plain_text(text, image, RejectReason.EMPTY_DOCUMENT)
        limit = self.limits.document
        kept, cut = self._text.cut(plain, limit - self._document_template - visual)

        def assemble(body: str) -> list[int]:
            return self._assemble(DOCUMENT_PREFIX, visual, body + DOCUMENT_SUFFIX)

        token_ids, cut_more = self._text.fit(kept, limit, assemble)
        return self._encoded(token_ids, image, image_key, truncated=cut or cut_more)

    def query(self, text: str | None, image: Patches | None = None, image_key: str = "") -> EncodedInput:
        """A query's tokens: template, visual tokens, text, score token.

        Raises:
            RejectedInput: nothing in it, text that is not Unicode, or an image that does not fit.
        """
        visual = self._visual_tokens(image, self._query_template + 1)
        plain = plain_text(text, image, RejectReason.EMPTY_QUERY)
        limit = self.limits.query + visual - 1

        def assemble(body: str) -> list[int]:
            return self._assemble(QUERY_PREFIX, visual, body)

        token_ids, cut = self._text.fit(plain, limit, assemble)
        return self._encoded([*token_ids, self._special.score], image, image_key, truncated=cut)

    def _visual_tokens(self, image: Patches | None, template: int) -> int:
        """Tokens that an image takes, its two markers included."""
        if image is None:
            return 0
        visual = image.grid[0] * image.grid[1] // self._merge**2 + 2
        if visual + template > self.limits.text:
            detail = f"{visual} visual tokens do not fit in {self.limits.text}: lower max_pixels or raise max_length"
            raise RejectedInput(RejectReason.INPUT_TOO_LONG, detail)
        return visual

    def _assemble(self, prefix: str, visual: int, body: str) -> list[int]:
        """Tokens but for the score token. Special tokens are added by id, so that text never merges with them."""
        if not visual:
            return self._text.encode(prefix + body)
        special = self._special
        image = [special.vision_start, *[special.image] * (visual - 2), special.vision_end]
        return [*self._text.encode(prefix), *image, *self._text.encode(body)]

    def _encoded(self, token_ids: list[int], image: Patches | None, image_key: str, truncated: bool) -> EncodedInput:
        return encoded_input(token_ids, image, image_key, truncated, self._special.image, self._merge)


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
