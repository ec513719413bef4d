"""Queries and documents of lists to token ids, and prompts of both."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lakerank.errors import CheckpointError
from lakerank.model.generative.tokenize import SPECIAL, join, user_text_tokenizer
from lakerank.model.inputs import EncodedInput, Images, Template, VisionTokens
from lakerank.model.listwise.config import ListPrompt
from lakerank.model.preprocess.tokenizer import TemplateTokenizer, TextTokenizer, read_tokenizer, text_positions
from lakerank.model.registry import CheckpointIdentity

#: More tokens than any text has: texts are cut before they are joined to the prompt.
_WHOLE = 2**31


@dataclass(frozen=True, slots=True)
class EncodedList:
    """A query and documents in their order; the query's `preamble` is the part of it before the documents."""

    query: EncodedInput
    documents: tuple[EncodedInput, ...]

    def in_order(self, places: Sequence[int]) -> EncodedList:
        """The documents in another order."""
        return EncodedList(self.query, tuple(self.documents[place] for place in places))


class ListTokenizer:
    """Encodes queries, documents and prompts of both. Safe to call from several threads.

    `path` is the checkpoint's tokenizer.json. `query_limit`, `document_limit`: tokens of a text that are read; images
    of a document have as many again. Where none are published, a window's documents share what its prompt leaves.

    Raises CheckpointError: the tokenizer lacks a token of the prompt.
    """

    def __init__(self, path: Path, prompt: ListPrompt, vision: VisionTokens, identity: CheckpointIdentity) -> None:
        self.template, self._prompt, self.vision = read_tokenizer(path, names_are_text=False), prompt, vision
        self._text = TextTokenizer(user_text_tokenizer(path))
        texts = (prompt.lead, prompt.tail, prompt.document.after, prompt.outro.after)
        names = sorted({name for text in texts for name in SPECIAL.findall(text)})
        if missing := [name for name in names if self.template.token_to_id(name) is None]:
            raise CheckpointError(f"{path}: not this reranker's: no {', '.join(missing)}")
        self._document = self._side(prompt.document, document=True)
        self._intro, self._outro = self._side(prompt.intro), self._side(prompt.outro)
        self.query_limit, self.document_limit = identity.limits.max_query_length, identity.document_tokens or 1
        if identity.document_tokens is None and identity.listwise is not None:
            count = identity.listwise.window or 1
            bare, answer = self.prompt(self.query("a"), [self.document("a")] * count), self.ids(" > [00]")
            room = identity.limits.max_length - 2 * self.query_limit - len(bare.token_ids)
            self.document_limit = room // count - len(answer)

    def document(self, text: str | None, images: Images = ()) -> EncodedInput:
        """A document's tokens. Raises RejectedInput: as `TemplateTokenizer.encode`."""
        kept, cut = self._cut(text, self.document_limit)
        encoded = self._document.encode(kept, images, _WHOLE, self.document_limit)
        return replace(encoded, truncated=encoded.truncated or cut)

    def query(self, text: str | None, images: Images = (), instruction: str | None = None) -> EncodedInput:
        """A query's tokens behind the documents; those before them, with the instruction, are its preamble.

        Raises RejectedInput: as `TemplateTokenizer.encode`.
        """
        kept, cut = self._cut(text, self.query_limit)
        intro, around = self._intro, self._prompt.instruction
        if around is not None and instruction:
            own, _ = self._cut(instruction, _WHOLE)
            template = self._prompt.intro
            intro = self._side(replace(template, suffix=f"{template.suffix}{around.prefix}{own}{around.suffix}"))
        images = [*images]
        before, behind = (side.encode(kept, images, _WHOLE, self.query_limit) for side in (intro, self._outro))
        return replace(behind, preamble=before, truncated=cut)

    def prompt(self, query: EncodedInput, documents: Sequence[EncodedInput]) -> EncodedInput:
        """The prompt of a query and documents in order."""
        prompt, count = self._prompt, len(documents)
        items = enumerate(documents, prompt.first)
        parts = [part for n, item in items for part in (self._constant(prompt.item.format(n=n)), item)]
        lead, tail = self._constant(prompt.lead.format(n=count)), self._constant(prompt.tail.format(n=count))
        return join(lead, query.preamble or query, *parts, query, tail)

    def text_tokens(self, each: EncodedList) -> list[int]:
        """Tokens of a query's text and of each document's, without the prompt's own."""
        query = min(len(each.query.token_ids) - self._outro.template_tokens, self.query_limit)
        own = self._document.template_tokens
        return [query, *(min(len(document.token_ids) - own, self.document_limit) for document in each.documents)]

    def ids(self, text: str) -> list[int]:
        """Tokens of constant text, in which names of special tokens are those tokens."""
        ids: list[int] = self.template.encode(text, add_special_tokens=False).ids
        return ids

    def _constant(self, text: str) -> EncodedInput:
        ids = self.ids(text)
        return EncodedInput(np.array(ids, dtype=np.int64), text_positions(0, len(ids)), len(ids))

    def _side(self, template: Template, document: bool = False) -> TemplateTokenizer:
        around = self.ids(template.before), self.ids(template.after)
        return TemplateTokenizer(self._text, template, around, self.vision, document=document)

    def _cut(self, text: str | None, most: int) -> tuple[str | None, bool]:
        """A text as it is put into the prompt, cut to `most` tokens, and whether it was."""
        if text is None:
            return None, False
        for name in self._prompt.stripped:
            text = text.replace(name, "")
        if self._prompt.one_line:
            text = re.sub(r"\[(\d+)\]", r"(\1)", " ".join(text.split()))
        return self._text.cut(text, most)
