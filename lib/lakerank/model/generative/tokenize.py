"""Queries and documents in a chat prompt to token ids, and pairs to what they share and what is their own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from lakerank.errors import CheckpointError, ConfigError
from lakerank.limits import Limits
from lakerank.model.generative.prompt import ChatPrompt, Template
from lakerank.model.inputs import NO_TOKEN, DocumentQueries, EncodedInput, Patches, RejectedInput
from lakerank.model.preprocess.tokenizer import TextTokenizer, encoded_input, plain_text
from lakerank.records import RejectReason

_SPECIAL = re.compile(r"<\|\w+\|>")


@dataclass(frozen=True, slots=True)
class Joined:
    """Two inputs, one after the other: a `TokenSequence`."""

    token_ids: np.ndarray
    positions: np.ndarray
    end: int
    images: tuple[tuple[str, Patches], ...]


def join(first: EncodedInput, second: EncodedInput) -> Joined:
    """The tokens of both; the second's positions continue where the first's end."""
    return Joined(
        np.concatenate((first.token_ids, second.token_ids)),
        np.concatenate((first.positions, second.positions + first.end), axis=1),
        first.end + second.end,
        first.images + second.images,
    )


@dataclass(frozen=True, slots=True)
class ChatTokens:
    """Ids that a prompt needs: around and in place of images (where the network sees), and of the two answers."""

    vision_start: int
    vision_end: int
    image: int
    yes: int
    no: int


@dataclass(frozen=True, slots=True)
class _Around:
    """Tokens of a template by themselves; `tokens` counts those of its prefix and suffix, too."""

    before: list[int]
    after: list[int]
    tokens: int


class ChatTokenizer:
    """Encodes documents and queries for one prompt. Safe to call from several threads.

    `path` is the checkpoint's tokenizer.json, `config` its config.json, `merge` the side in patches of the square that
    becomes a visual token.

    Raises:
        CheckpointError: the tokenizer lacks what the prompt needs.
        ConfigError: `limits` leave no room beside the prompt.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], prompt: ChatPrompt, limits: Limits, merge: int) -> None:
        self._template = Tokenizer.from_file(str(path))
        self._template.no_padding()
        self._template.no_truncation()
        self._text = TextTokenizer(_user_text_tokenizer(path))
        self._prompt = prompt
        self._merge = merge
        self.tokens = self._find_tokens(config, str(path.parent))
        self._preamble = encoded_input(self._constant(prompt.preamble), None, "", False, NO_TOKEN, merge)
        self._around = {template: self._surroundings(template) for template in (prompt.document, prompt.query)}
        self._limits = self._token_limits(limits)

    def document(self, text: str | None, image: Patches | None = None, image_key: str = "") -> EncodedInput:
        """A document's tokens.

        Raises:
            RejectedInput: it is empty, holds a kind that the prompt has no place for, cannot be read or does not fit.
        """
        return self._encoded(self._prompt.document, text, image, image_key, RejectReason.EMPTY_DOCUMENT)

    def query(self, text: str | None, image: Patches | None = None, image_key: str = "") -> EncodedInput:
        """A query's tokens.

        Raises:
            RejectedInput: as for a document.
        """
        return self._encoded(self._prompt.query, text, image, image_key, RejectReason.EMPTY_QUERY)

    def arrange(self, document: EncodedInput, queries: tuple[EncodedInput, ...]) -> DocumentQueries:
        """What pairs share exactly, and how each continues.

        Where the document comes first that is the document. Where the query does, it is what comes before both: work
        on a document cannot be shared then, for the query has been seen by every token of it.
        """
        if self._prompt.document_first:
            return DocumentQueries(document, queries)
        return DocumentQueries(self._preamble, tuple(join(query, document) for query in queries))

    def _encoded(
        self, template: Template, text: str | None, image: Patches | None, key: str, empty: RejectReason
    ) -> EncodedInput:
        plain = plain_text(text, image, empty)
        self._check_modality(template, plain, image)
        around, visual = self._around[template], self._visual(image)
        limit = self._limits[template]
        if len(visual) + around.tokens > self._limits[self._prompt.document]:
            detail = f"{len(visual)} visual tokens do not fit: lower max_pixels or raise max_length"
            raise RejectedInput(RejectReason.INPUT_TOO_LONG, detail)
        if template is self._prompt.query:
            limit += len(visual)

        def assemble(body: str) -> list[int]:
            if visual:
                prefix, suffixed = self._text.encode(template.prefix), self._text.encode(body + template.suffix)
                return [*around.before, *prefix, *visual, *suffixed, *around.after]
            return [*around.before, *self._text.encode(template.prefix + body + template.suffix), *around.after]

        token_ids, cut = self._text.fit(plain, limit, assemble)
        return encoded_input(token_ids, image, key, cut, self.tokens.image, self._merge)

    def _check_modality(self, template: Template, text: str, image: Patches | None) -> None:
        contents = ((bool(text), template.text, "text"), (image is not None, template.image, "an image"))
        for present, allowed, name in contents:
            if present and not allowed:
                item = "document" if template is self._prompt.document else "query"
                raise RejectedInput(RejectReason.MODALITY_UNSUPPORTED, f"{name} in the {item}")

    def _visual(self, image: Patches | None) -> list[int]:
        if image is None:
            return []
        count = image.grid[0] * image.grid[1] // self._merge**2
        return [self.tokens.vision_start, *[self.tokens.image] * count, self.tokens.vision_end]

    def _surroundings(self, template: Template) -> _Around:
        before, after = self._constant(template.before), self._constant(template.after)
        texts = len(self._text.encode(template.prefix)) + len(self._text.encode(template.suffix))
        return _Around(before, after, len(before) + texts + len(after))

    def _constant(self, text: str) -> list[int]:
        ids: list[int] = self._template.encode(text, add_special_tokens=False).ids
        return ids

    def _token_limits(self, limits: Limits) -> dict[Template, int]:
        """Tokens of a query and of a document, template included; a query's visual tokens are not counted."""
        rooms = {
            self._prompt.query: limits.max_query_length,
            self._prompt.document: limits.max_length - limits.max_query_length - len(self._preamble.token_ids),
        }
        for template, room in rooms.items():
            needed = self._around[template].tokens + 1
            if room < needed:
                name = "max_query_length" if template is self._prompt.query else "max_length"
                raise ConfigError([f"{name}: {room} tokens for one side, but its prompt takes {needed}"])
        return rooms

    def _find_tokens(self, config: Mapping[str, Any], source: str) -> ChatTokens:
        prompt = self._prompt
        texts = (
            prompt.preamble,
            *(part for template in (prompt.document, prompt.query) for part in (template.before, template.after)),
        )
        names = sorted({name for text in texts for name in _SPECIAL.findall(text)})
        faults = [f"no {name}" for name in (*names, prompt.yes, prompt.no) if self._template.token_to_id(name) is None]
        vision: list[Any] = [NO_TOKEN] * 3
        if prompt.document.image:
            keys = ("vision_start_token_id", "vision_end_token_id", "image_token_id")
            faults += [f"config.json names no {name}" for name in keys if not isinstance(config.get(name), int)]
            vision = [config.get(name) for name in keys]
        if faults:
            raise CheckpointError(f"{source}: tokenizer.json is not this reranker's: {', '.join(faults)}")
        words = (self._template.token_to_id(word) for word in (prompt.yes, prompt.no))
        return ChatTokens(*vision, *words)


def check_vocabulary(tokenizer: ChatTokenizer, size: int, source: str) -> None:
    """Refuse a tokenizer whose ids have no embedding among `size`.

    Raises:
        CheckpointError: says which.
    """
    vocabulary = tokenizer._template.get_vocab(with_added_tokens=True)
    largest = max(max(vocabulary.values(), default=-1), tokenizer.tokens.image)
    if largest >= size:
        raise CheckpointError(f"{source}: token ids up to {largest}, but an embedding of {size}")


def _user_text_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer for what users wrote: no added token's name in it becomes the token.

    A tokenizer leaves out those marked special alone; Qwen3's `<think>` and others are not.
    """
    stored = json.loads(path.read_text(encoding="utf-8"))
    for token in stored.get("added_tokens", ()):
        token["special"] = True
    tokenizer = Tokenizer.from_str(json.dumps(stored))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer
