"""Texts to token ids, and a query and a document to the sequences that a cross-encoder reads: one, or its windows.

A pair is `<s> query </s></s> document </s>` for XLM-RoBERTa, `[CLS] query [SEP] document [SEP]` for ModernBERT and for
BERT, whose tokens after the first `[SEP]` are of type 1. What of a pair is read, `PairLimits` has:

- bge-reranker-v2-m3 as FlagEmbedding scores it (`inference/reranker/encoder_only/base.py`): the query is cut to its
  length, three quarters of the sequence's at most, without special tokens, the document to what the sequence then has
  room for (`only_second`).
- jina-reranker-v2 as its `rerank` does (`modeling_xlm_roberta.py`, `reranker_tokenize_preproc`): the query is cut to
  its length with two special tokens, the document is read in windows, and the largest logit counts.
- BERT and ModernBERT as sentence-transformers' CrossEncoder scores them (`cross_encoder/model.py`): the longer text is
  cut until the pair fits (`longest_first`), after the query was cut to its length, which CrossEncoder does not have.

A text that names a special token, such as `</s>`, is read as the token, as the published loops do: XLM-RoBERTa's
tokenizer.json has these names among its pieces, so that the two cannot be distinguished.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from tokenizers import Tokenizer

from lakerank.errors import CheckpointError
from lakerank.model.engine.encoder import EncoderShape
from lakerank.model.engine.encoder_engine import PairTokens
from lakerank.model.inputs import EncodedInput, Images, RejectedInput
from lakerank.model.preprocess.tokenizer import TextTokenizer
from lakerank.records import RejectReason

#: Tokens that a window shares with the one before it.
OVERLAP = 80

_NO_POSITIONS = np.empty((3, 0), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class PairTemplate:
    """A family's pair by names of special tokens, and what of it is read.

    `start`, the query, `separator` (`between` times), the document, `separator`. `types`: of tokens, whose positions
    count from 0; of two the document's and the last one are the second. None: positions do not count from 0.
    `query_special`: special tokens that a query's limit counts. `overlap`: tokens shared by windows, in which a
    document that does not fit is read. None: it is cut, and with `longest_first` a query that is longer is.
    """

    start: str
    separator: str
    between: int
    types: int | None = None
    query_special: int = 0
    overlap: int | None = None
    longest_first: bool = False

    @property
    def special(self) -> int:
        """Special tokens of a pair, of which two are the query's."""
        return self.between + 2


BGE_PAIR = PairTemplate("<s>", "</s>", between=2)
JINA_PAIR = replace(BGE_PAIR, query_special=2, overlap=OVERLAP)
BERT_PAIR = PairTemplate("[CLS]", "[SEP]", between=1, types=2, longest_first=True)
MODERN_PAIR = replace(BERT_PAIR, types=1)


@dataclass(frozen=True, slots=True)
class PairLimits:
    """Tokens of a family's pair, special ones included, and of a query, as `query_special` says."""

    template: PairTemplate
    sequence: int
    max_query: int

    @property
    def query(self) -> int:
        """Tokens of a query's text."""
        return self.max_query - self.template.query_special

    def room(self, query_tokens: int) -> int:
        """Tokens of a document beside a query of so many."""
        return self.sequence - self.template.special - query_tokens

    def query_tokens(self, query_tokens: int, document_tokens: int) -> int:
        """Tokens of a query that are read beside a document of so many.

        Source: tokenizers, `utils/truncation.rs`: the longer text is cut; both to half of the room where both are
        longer than that, and the odd token is the longer one's, the document's where they are alike.
        """
        room = self.room(0)
        if not self.template.longest_first or query_tokens + document_tokens <= room:
            return query_tokens
        if query_tokens <= document_tokens:
            return min(query_tokens, room // 2)
        return room - min(document_tokens, room // 2)

    def spans(self, query_tokens: int, document_tokens: int) -> list[tuple[int, int]]:
        """(start, stop) of what each sequence of a pair reads of the document."""
        room = self.room(query_tokens)
        if self.template.overlap is None:
            return [(0, min(room, document_tokens))]
        return windows(document_tokens, room, self.template.overlap)


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


class PairTokenizer:
    """Encodes documents and queries without special tokens. Safe to call from several threads."""

    def __init__(self, tokenizer: Tokenizer, limits: PairLimits) -> None:
        self._text = TextTokenizer(tokenizer)
        self._limits = limits

    def document(self, text: str | None, images: Images = ()) -> EncodedInput:
        """A document's tokens, all that any query leaves room for. Raises RejectedInput: empty, or not Unicode."""
        most = None if self._limits.template.overlap is not None else self._limits.room(0)
        return self._encoded(text, most, RejectReason.EMPTY_DOCUMENT)

    def query(self, text: str | None, images: Images = (), instruction: str | None = None) -> EncodedInput:
        """A query's tokens. Raises RejectedInput: empty, or not Unicode."""
        return self._encoded(text, self._limits.query, RejectReason.EMPTY_QUERY)

    def _encoded(self, text: str | None, most: int | None, empty: RejectReason) -> EncodedInput:
        if text is None or not text.strip():
            raise RejectedInput(empty, "no text")
        ids = np.array(self._text.encode(text) if most is None else self._text.first(text, most), dtype=np.int64)
        kept = ids[:most]
        return EncodedInput(kept, _NO_POSITIONS, len(kept), truncated=len(kept) < len(ids))


def read_pair_tokens(tokenizer: Tokenizer, template: PairTemplate, shape: EncoderShape, source: str) -> PairTokens:
    """The special tokens of a tokenizer for a network of this shape.

    Raises CheckpointError: it has none of these names, makes a pair otherwise, or has ids without embeddings.
    """
    start, separator = (tokenizer.token_to_id(name) for name in (template.start, template.separator))
    missing = [name for name in (template.start, template.separator) if tokenizer.token_to_id(name) is None]
    faults = [f"no token {name}" for name in missing]
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= shape.vocabulary:
        faults.append(f"token ids up to {largest}, but an embedding of {shape.vocabulary}")
    if template.types == 2 and shape.types < 2:
        faults.append(f"tokens of two types, but an embedding of {shape.types}")
    document_row = None if template.types is None else shape.positions * (template.types - 1)
    tokens = PairTokens(start or 0, separator or 0, shape.padding, template.between, document_row)
    if not faults and tokenizer.post_processor is not None and not _makes_pairs(tokenizer, tokens):
        faults.append(f"its pairs are not {template.start} query {template.separator} … document {template.separator}")
    if faults:
        raise CheckpointError(f"{source}: tokenizer.json is not this network's: {'; '.join(faults)}")
    return tokens


def _makes_pairs(tokenizer: Tokenizer, tokens: PairTokens) -> bool:
    """Whether a tokenizer's own pair is the sequence made here, its types included where the network reads them."""
    texts = ("a", "b")
    query, document = (tokenizer.encode(text, add_special_tokens=False).ids for text in texts)
    pair, length = tokenizer.encode(*texts), 1 + len(query) + tokens.between
    types = [0] * length + [1] * (len(document) + 1)
    ids = tokens.sequence(np.array(query, dtype=np.int64), np.array(document, dtype=np.int64)).tolist()
    return pair.ids == ids and (not tokens.document_row or pair.type_ids == types)
