"""Queries and documents of jina-reranker-m0 to token ids, cut to their limits; neither depends on its partner."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from lakerank.errors import CheckpointError, ConfigError
from lakerank.limits import Limits
from lakerank.model.inputs import EncodedInput, Images, VisionTokens
from lakerank.model.jina_m0.config import DOCUMENT, QUERY, Settings
from lakerank.model.preprocess.tokenizer import TemplateTokenizer, TextTokenizer

_NAMED_IDS = ("vision_start_token_id", "vision_end_token_id", "image_token_id")


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids that a checkpoint's config.json names."""

    vision_start: int
    vision_end: int
    image: int
    score: int


def read_special_tokens(folder: Path, settings: Settings) -> SpecialTokens:
    """The ids that config.json names. Raises CheckpointError: one is not named."""
    config = settings.config
    missing = [name for name in _NAMED_IDS if not isinstance(config.get(name), int)]
    if missing:
        raise CheckpointError(f"{folder}: config.json names no {', '.join(missing)}")
    start, end, image = (int(config[name]) for name in _NAMED_IDS)
    return SpecialTokens(start, end, image, score=settings.score_token_id)


@dataclass(frozen=True, slots=True)
class TokenLimits:
    """Tokens that inputs may have. They depend on no partner, so that a document's prefix is the same for every query.

    `text`: text tokens of a document, as published, and the most that an image and its template may take of a document
    or query: visual tokens are never cut. `document`: all of a document's, template and image included. `query`: all of
    a query's, template and score token included, but not its visual tokens: a pair has at most `max_length` tokens plus
    those of an image in the query.
    """

    text: int
    document: int
    query: int


def token_limits(limits: Limits, document_template: int, query_template: int) -> TokenLimits:
    """Share `max_length` between document and query, whose templates are counted in tokens.

    Raises ConfigError: nothing is left for a query.
    """
    text = max(limits.max_length - limits.max_query_length, limits.max_query_length)
    document = text + document_template
    query = limits.max_length - document
    if query <= query_template:
        needed = document_template + query_template + 1
        raise ConfigError(
            [f"max_query_length {limits.max_query_length}: at least {needed}, the prompt itself takes that"]
        )
    return TokenLimits(text, document, query)


class PromptTokenizer:
    """Encodes documents and queries. Safe to call from several threads."""

    def __init__(self, tokenizer: Tokenizer, special: SpecialTokens, limits: Limits, merge: int) -> None:
        text = TextTokenizer(tokenizer)
        vision = VisionTokens(special.vision_start, special.vision_end, special.image, merge)
        self._document = TemplateTokenizer(text, DOCUMENT, ([], []), vision, document=True)
        self._query = TemplateTokenizer(text, QUERY, ([], [special.score]), vision, document=False)
        self.limits = token_limits(limits, self._document.template_tokens, self._query.template_tokens)

    def document(self, text: str | None, images: Images = ()) -> EncodedInput:
        """A document's tokens: template, visual tokens, text. Raises RejectedInput: as `TemplateTokenizer.encode`."""
        return self._document.encode(text, images, self.limits.document, self.limits.text)

    def query(self, text: str | None, images: Images = (), instruction: str | None = None) -> EncodedInput:
        """A query's tokens, the score token after those of template, image and text. Raises RejectedInput: likewise."""
        return self._query.encode(text, images, self.limits.query, self.limits.text)


def check_tokenizer(tokenizer: Tokenizer, special: SpecialTokens, vocabulary: int, source: str) -> None:
    """Refuse a tokenizer that does not belong to its network.

    Raises CheckpointError: a special token is missing, or in a text its name is the token; an id has no embedding.
    """
    faults = []
    for name in ("vision_start", "vision_end", "image", "score"):
        token_id = getattr(special, name)
        token = tokenizer.id_to_token(token_id)
        if not 0 <= token_id < vocabulary:
            faults.append(f"{name} token id {token_id} is outside the vocabulary of {vocabulary}")
        elif token is None:
            faults.append(f"{name} token id {token_id} is not in tokenizer.json")
        elif name != "score" and token_id in tokenizer.encode(f"a {token} b").ids:
            faults.append(f"{name} token {token} is not marked special in tokenizer.json")
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= vocabulary:
        faults.append(f"token ids up to {largest} but an embedding of {vocabulary}")
    if faults:
        raise CheckpointError(f"{source}: tokenizer.json and config.json do not fit: {'; '.join(faults)}")
