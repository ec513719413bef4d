"""Queries and documents in a chat prompt to token ids, and pairs to what they share and what is their own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from lakerank.errors import CheckpointError, ConfigError
from lakerank.limits import Limits
from lakerank.model.generative.config import ChatPrompt
from lakerank.model.inputs import NO_TOKEN, DocumentQueries, EncodedInput, Images, Template, VisionTokens
from lakerank.model.preprocess.tokenizer import (
    TemplateTokenizer,
    TextTokenizer,
    plain_tokenizer,
    read_tokenizer,
    text_positions,
)

SPECIAL = re.compile(r"<\|\w+\|>|<(?:bos|\w+_of_turn)>")
_VISION_IDS = ("vision_start_token_id", "vision_end_token_id", "image_token_id")


def join(*parts: EncodedInput) -> EncodedInput:
    """The tokens of all; positions of each continue where those before end."""
    starts = accumulate((part.end for part in parts), initial=0)
    return EncodedInput(
        np.concatenate([part.token_ids for part in parts]),
        np.concatenate([part.positions + start for part, start in zip(parts, starts, strict=False)], axis=1),
        sum(part.end for part in parts),
        tuple(image for part in parts for image in part.images),
    )


def vision_tokens(config: Mapping[str, Any], document: Template, merge: int) -> VisionTokens:
    """The tokens of images, by config.json; of none where documents have none."""
    start, end, image = (config[key] if document.image else NO_TOKEN for key in _VISION_IDS)
    return VisionTokens(start, end, image, merge)


def check_vocabulary(tokenizer: Tokenizer, vision: VisionTokens, size: int, source: str) -> None:
    """Refuse a tokenizer whose ids have no embedding among `size`. Raises CheckpointError: says which."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    if (largest := max(*vocabulary.values(), vision.start, vision.end, vision.image)) >= size:
        raise CheckpointError(f"{source}: token ids up to {largest}, but an embedding of {size}")


class ChatTokenizer:
    """Encodes documents and queries for one prompt. Safe to call from several threads.

    `path` is the checkpoint's tokenizer.json, `config` its config.json, `merge` the side in patches of the square that
    becomes a visual token. `vision` are the tokens of images, `answer` the one or two that answer. `window`: tokens of
    a prompt that has no document, so that its last one sees them all.

    Raises CheckpointError: the tokenizer lacks what the prompt needs. ConfigError: `limits` leave the prompt no room.
    """

    def __init__(
        self, path: Path, config: Mapping[str, Any], prompt: ChatPrompt, limits: Limits, merge: int, window: int = 0
    ) -> None:
        self.template = read_tokenizer(path, names_are_text=False)
        self._prompt = prompt
        self._check_names(config, str(path.parent))
        self.vision = vision_tokens(config, prompt.document, merge)
        self.answer = [self.template.token_to_id(word) for word in (prompt.yes, prompt.no) if word is not None]
        text = self._text = TextTokenizer(self.template if prompt.encoder else user_text_tokenizer(path))
        self._preamble = self._preamble_of(prompt.default_instruction)
        self._document, self._query = (
            TemplateTokenizer(text, template, self._around(template), self.vision, document=template is prompt.document)
            for template in (prompt.document, prompt.query)
        )
        shared, self._query_limit = len(self._preamble.token_ids), limits.max_query_length
        self._document_limit = limits.max_length - limits.max_query_length - (0 if prompt.encoder else shared)
        if prompt.encoder:
            self._query_limit = min(self._query_limit, window - shared)
        for name, room, side in (
            ("max_query_length", self._query_limit, self._query),
            ("max_length", self._document_limit, self._document),
        ):
            if room <= side.template_tokens:
                needed = side.template_tokens + 1
                raise ConfigError([f"{name}: {room} tokens for one side, but its prompt takes {needed}"])

    def document(self, text: str | None, images: Images = ()) -> EncodedInput:
        """A document's tokens. Raises RejectedInput: as `TemplateTokenizer.encode`."""
        return self._document.encode(self._stripped(text), images, self._document_limit, self._document_limit)

    def _stripped(self, text: str | None) -> str | None:
        return text.strip() if text and self._prompt.strips else text

    def query(self, text: str | None, images: Images = (), instruction: str | None = None) -> EncodedInput:
        """A query's tokens. An instruction is never cut: those that it has more than the published one are the query's.

        Raises RejectedInput: as `TemplateTokenizer.encode`.
        """
        preamble = self._preamble if instruction is None else self._preamble_of(instruction)
        more = max(0, len(preamble.token_ids) - len(self._preamble.token_ids))
        encoded = self._query.encode(self._stripped(text), images, self._query_limit - more, self._document_limit)
        return replace(encoded, preamble=preamble)

    def _preamble_of(self, instruction: str) -> EncodedInput:
        ids, around = self._constant(self._prompt.preamble), self._prompt.instruction
        if around is not None and instruction:
            ids += self._text.encode(around.prefix + instruction + around.suffix)
        return EncodedInput(np.array(ids, dtype=np.int64), text_positions(0, len(ids)), len(ids))

    def arrange(self, document: EncodedInput, queries: tuple[EncodedInput, ...]) -> DocumentQueries:
        """What pairs share exactly, and how each continues.

        Where the document comes first that is the document. Where the query does, it is what comes before both, their
        instruction too: work on a document cannot be shared then, for the query has been seen by every token of it.
        """
        if self._prompt.document_first:
            return DocumentQueries(document, queries)
        shared = queries[0].preamble or self._preamble
        return DocumentQueries(shared, tuple(join(query, document) for query in queries))

    def check_parts(self, source: str, text: str = "A word: 7") -> None:
        """Refuse a tokenizer whose tokens reach across parts of the prompt. Raises CheckpointError: they do."""
        prompt, query = self._prompt, self.query(text)
        sides = [prompt.query] if prompt.encoder else [prompt.query, prompt.document]
        ordered = sides[::-1] if prompt.document_first else sides
        parts = (part for side in ordered for part in (side.before, side.prefix, text, side.suffix, side.after))
        ids = [*self._preamble.token_ids, *query.token_ids]
        if not prompt.encoder:
            pair = self.arrange(self.document(text), (query,))
            ids = [*pair.document.token_ids, *pair.queries[0].token_ids]
        if self._constant(prompt.head + "".join(parts)) != ids:
            raise CheckpointError(f"{source}: tokens of tokenizer.json reach across parts of this reranker's prompt")

    def _constant(self, text: str) -> list[int]:
        ids: list[int] = self.template.encode(text, add_special_tokens=False).ids
        return ids

    def _around(self, template: Template) -> tuple[list[int], list[int]]:
        return self._constant(template.before), self._constant(template.after)

    def _check_names(self, config: Mapping[str, Any], source: str) -> None:
        prompt = self._prompt
        sides = (prompt.document, prompt.query)
        texts = (prompt.preamble, *(part for template in sides for part in (template.before, template.after)))
        words = [word for word in (prompt.yes, prompt.no) if word is not None]
        names = sorted({name for text in texts for name in SPECIAL.findall(text)})
        faults = [f"no {name}" for name in (*names, *words) if self.template.token_to_id(name) is None]
        if prompt.document.image:
            faults += [f"config.json names no {key}" for key in _VISION_IDS if not isinstance(config.get(key), int)]
        if faults:
            raise CheckpointError(f"{source}: tokenizer.json is not this reranker's: {', '.join(faults)}")


def user_text_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer for what users wrote: no added token's name in it becomes the token.

    A tokenizer leaves out those marked special alone; Qwen3's `<think>` and others are not.
    """
    stored = json.loads(path.read_text(encoding="utf-8"))
    for token in stored.get("added_tokens", ()):
        token["special"] = True
    return plain_tokenizer(Tokenizer.from_str(json.dumps(stored)), names_are_text=True)
