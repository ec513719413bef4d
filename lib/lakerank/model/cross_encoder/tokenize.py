"""Texts to token ids, and a query and a document to the sequences that a cross-encoder reads: one, or its windows.

A pair is `<s> query </s></s> document </s>` in both families. Where they differ, `PairLimits` has it:

- bge-reranker-v2-m3 as FlagEmbedding scores it (`inference/reranker/encoder_only/base.py`): the query is cut to its
  length, three quarters of the sequence's at most, without special tokens, the document to what the sequence then has
  room for (`only_second`).
- jina-reranker-v2 as its `rerank` does (`modeling_xlm_roberta.py`, `reranker_tokenize_preproc`): the query is cut to
  its length with two special tokens, the document is read in windows, and the largest logit counts.

A text that names a special token, such as `</s>`, is read as the token, as the published loops do: XLM-RoBERTa's
tokenizer.json has these names among its pieces, so that the two cannot be distinguished.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from lakerank.errors import CheckpointError
from lakerank.model.engine.encoder_engine import PairTokens
from lakerank.model.inputs import EncodedInput, Patches, RejectedInput
from lakerank.model.preprocess.tokenizer import TextTokenizer
from lakerank.records import RejectReason

#: Special tokens of a sequence: `<s>` and `</s>` around the query, `</s>` twice around the document.
SPECIAL = 4

#: Names of the tokens that XLM-RoBERTa's tokenizer starts and separates with.
START, SEPARATOR = "<s>", "</s>"

#: Tokens that a window shares with the one before it.
OVERLAP = 80

#: Characters that normalising may make one of, at most, in the texts that are cut before they are tokenised.
_NORMALISED_CHARACTERS = 4

_NO_POSITIONS = np.empty((3, 0), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class PairLimits:
    """Tokens of a sequence, special ones included, and of a query's text without any; `overlap`: of windows, where a
    document that does not fit is read in windows. None: it is cut.
    """

    sequence: int
    query: int
    overlap: int | None

    def room(self, query_tokens: int) -> int:
        """Tokens of a document beside a query of so many."""
        return self.sequence - SPECIAL - query_tokens

    def spans(self, query_tokens: int, document_tokens: int) -> list[tuple[int, int]]:
        """(start, stop) of what each sequence of a pair reads of the document."""
        room = self.room(query_tokens)
        if self.overlap is None:
            return [(0, min(room, document_tokens))]
        return windows(document_tokens, room, self.overlap)


def windows(tokens: int, room: int, overlap: int = OVERLAP) -> list[tuple[int, int]]:
    """(start, stop) of each window of at most `room` tokens on a document of `tokens`, from its start to its end.

    Neighbours share `overlap` tokens, or a quarter of the room where that is less; the last window is moved back until
    it is as long as the others, and so may share more. A document that fits is one window.

    Source: jinaai/jina-reranker-v2-base-multilingual, `modeling_xlm_roberta.py`, `reranker_tokenize_preproc`.
    """
    if tokens <= room:
        return [(0, tokens)]
    step = room - min(overlap, room // 4)
    starts = range(0, tokens - room, step)
    return [*((start, start + room) for start in starts), (tokens - room, tokens)]


def bge_limits(max_length: int, max_query_length: int) -> PairLimits:
    """Limits of a pair of bge-reranker-v2-m3."""
    return PairLimits(max_length, max_query_length, None)


def jina_limits(max_length: int, max_query_length: int) -> PairLimits:
    """Limits of a pair of jina-reranker-v2, whose `max_query_length` counts two special tokens."""
    return PairLimits(max_length, max_query_length - SPECIAL // 2, OVERLAP)


class PairTokenizer:
    """Encodes documents and queries without special tokens. Safe to call from several threads."""

    def __init__(self, tokenizer: Tokenizer, limits: PairLimits) -> None:
        self._text = TextTokenizer(tokenizer)
        self._limits = limits

    def document(self, text: str | None, image: Patches | None = None, image_key: str = "") -> EncodedInput:
        """A document's tokens, all that any query leaves room for. Raises RejectedInput: empty, or not Unicode."""
        most = None if self._limits.overlap is not None else self._limits.room(0)
        return self._encoded(text, most, RejectReason.EMPTY_DOCUMENT)

    def query(self, text: str | None, image: Patches | None = None, image_key: str = "") -> EncodedInput:
        """A query's tokens. Raises RejectedInput: empty, or not Unicode."""
        return self._encoded(text, self._limits.query, RejectReason.EMPTY_QUERY)

    def _encoded(self, text: str | None, most: int | None, empty: RejectReason) -> EncodedInput:
        if text is None or not text.strip():
            raise RejectedInput(empty, "no text")
        ids = np.array(self._text.encode(text) if most is None else self._first(text, most), dtype=np.int64)
        kept = ids[:most]
        return EncodedInput(kept, _NO_POSITIONS, len(kept), truncated=len(kept) < len(ids))

    def _first(self, text: str, most: int) -> list[int]:
        """More than `most` tokens from the start of a text, or all that there are."""
        window = (most + 1) * self._text.longest * _NORMALISED_CHARACTERS
        while True:
            ids = self._text.encode(text[:window])
            if len(ids) > most or window >= len(text):
                return ids
            window *= 2  # of white space, for instance, there is hardly a token


def read_pair_tokens(tokenizer: Tokenizer, vocabulary: int, padding: int, source: str) -> PairTokens:
    """The special tokens of a tokenizer; `padding` is what config.json says.

    Raises CheckpointError: it has none of these names, or ids that the network has no embeddings for.
    """
    start, separator = (tokenizer.token_to_id(name) for name in (START, SEPARATOR))
    faults = [f"no token {name}" for name, token in ((START, start), (SEPARATOR, separator)) if token is None]
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= vocabulary:
        faults.append(f"token ids up to {largest}, but an embedding of {vocabulary}")
    if faults:
        raise CheckpointError(f"{source}: tokenizer.json is not this network's: {'; '.join(faults)}")
    return PairTokens(start or 0, separator or 0, padding)  # neither is None any more
