"""Loads cross-encoders: groups are flattened to pairs, and pairs to windows that the encoder scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch

from lakerank.errors import CheckpointError
from lakerank.model.checkpoint import read_json
from lakerank.model.cross_encoder.tokenize import (
    SPECIAL,
    PairLimits,
    PairTokenizer,
    bge_limits,
    jina_limits,
    read_pair_tokens,
)
from lakerank.model.cross_encoder.weights import BGE, JINA, Naming, load_weights, read_shape
from lakerank.model.engine.encoder import PackedEncoder
from lakerank.model.engine.encoder_engine import DocumentWindows, EncoderEngine, Window
from lakerank.model.engine.reranker import BatchedReranker, PairLengths
from lakerank.model.inputs import EncodedInput
from lakerank.model.preprocess.pipeline import Preprocessor
from lakerank.model.preprocess.tokenizer import read_tokenizer
from lakerank.model.registry import LoadOptions

#: By the family's name in the registry: the naming of tensors, and the limits of a pair by `max_length` and
#: `max_query_length`.
_FAMILIES: Mapping[str, tuple[Naming, Callable[[int, int], PairLimits]]] = {
    "bge-reranker": (BGE, bge_limits),
    "jina-reranker-v2": (JINA, jina_limits),
}

#: Least tokens of a sequence: half of them for the query, four special ones, and some of the document.
LEAST_SEQUENCE = 16


def document_windows(limits: PairLimits, document: EncodedInput, queries: tuple[EncodedInput, ...]) -> DocumentWindows:
    """The windows on a document with each query."""
    return DocumentWindows(tuple(_windows(limits, query.token_ids, document.token_ids) for query in queries))


def _windows(limits: PairLimits, query: np.ndarray, document: np.ndarray) -> tuple[Window, ...]:
    spans = limits.spans(len(query), len(document))
    return tuple(Window(query, document[start:stop], stop - start + len(query) + SPECIAL) for start, stop in spans)


def pair_lengths(limits: PairLimits, query: EncodedInput, document: EncodedInput) -> PairLengths:
    """Tokens of a pair's query and document, special ones included, and whether each is truncated."""
    query_tokens, document_tokens = len(query.token_ids), len(document.token_ids)
    end = limits.spans(query_tokens, document_tokens)[-1][1]
    truncated = document.truncated or end < document_tokens
    return query_tokens + SPECIAL // 2, end + SPECIAL // 2, query.truncated, truncated


def load(options: LoadOptions) -> BatchedReranker:
    """The checkpoint of a family on its device. Raises CheckpointError: weights or tokenizer do not fit config.json."""
    folder = options.folder
    identity, given = options.identity, options.identity.limits
    naming, pair_limits = _FAMILIES[identity.family]
    limits = pair_limits(given.max_length, given.max_query_length)
    shape = read_shape(read_json(folder / "config.json"), str(folder))
    if limits.sequence < LEAST_SEQUENCE:
        raise CheckpointError(f"{folder}: sequences of {limits.sequence} tokens leave none for a document")
    tokenizer = read_tokenizer(folder / "tokenizer.json", names_are_text=False)  # see `tokenize`
    tokens = read_pair_tokens(tokenizer, shape.vocabulary, shape.padding, str(folder))
    weights = load_weights(folder, shape, naming, getattr(torch, options.dtype), torch.device(options.device))
    engine = EncoderEngine(PackedEncoder(shape, weights), tokens, reproducible=options.reproducible)
    pairs, arrange = PairTokenizer(tokenizer, limits), partial(document_windows, limits)
    preprocessor = Preprocessor(pairs, given, None, arrange=arrange, threads=options.host_threads)
    lengths = partial(pair_lengths, limits)
    return BatchedReranker(engine, preprocessor, identity.fingerprint, identity.logit_bias, lengths)
