"""Loads cross-encoders: groups are flattened to pairs, and pairs to windows that the encoder scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from lakerank.errors import CheckpointError
from lakerank.model.config import read_config
from lakerank.model.cross_encoder.head import read_head
from lakerank.model.cross_encoder.tokenize import (
    BERT_PAIR,
    BGE_PAIR,
    JINA_PAIR,
    MODERN_PAIR,
    PairLimits,
    PairTemplate,
    PairTokenizer,
    read_pair_tokens,
)
from lakerank.model.cross_encoder.weights import BERT_NAMES, BGE, JINA, MODERN, Naming, load_weights, read_shape
from lakerank.model.engine.encoder import PackedEncoder
from lakerank.model.engine.encoder_engine import DocumentWindows, EncoderEngine, Window
from lakerank.model.engine.reranker import BatchedReranker, PairLengths
from lakerank.model.inputs import EncodedInput
from lakerank.model.preprocess.pipeline import Preprocessor
from lakerank.model.preprocess.tokenizer import read_tokenizer
from lakerank.model.registry import LoadOptions

#: How tensors are named, and what a pair is, by the family's name in the registry.
_FAMILIES: Mapping[str, tuple[Naming, PairTemplate]] = {
    "bge-reranker": (BGE, BGE_PAIR),
    "jina-reranker-v2": (JINA, JINA_PAIR),
    "bert-reranker": (BERT_NAMES, BERT_PAIR),
    "modernbert-reranker": (MODERN, MODERN_PAIR),
}

#: Least tokens of a sequence: half of them for the query, four special ones, and some of the document.
LEAST_SEQUENCE = 16


def document_windows(limits: PairLimits, document: EncodedInput, queries: tuple[EncodedInput, ...]) -> DocumentWindows:
    """The windows on a document with each query."""
    return DocumentWindows(tuple(_windows(limits, query.token_ids, document.token_ids) for query in queries))


def _windows(limits: PairLimits, query: np.ndarray, document: np.ndarray) -> tuple[Window, ...]:
    query = query[: limits.query_tokens(len(query), len(document))]
    spans, around = limits.spans(len(query), len(document)), len(query) + limits.template.special
    return tuple(Window(query, document[start:stop], stop - start + around) for start, stop in spans)


def pair_lengths(limits: PairLimits, query: EncodedInput, document: EncodedInput) -> PairLengths:
    """Tokens of a pair's query and document, special ones included, and whether each is truncated."""
    document_tokens = len(document.token_ids)
    query_tokens = limits.query_tokens(len(query.token_ids), document_tokens)
    end = limits.spans(query_tokens, document_tokens)[-1][1]
    query_truncated = query.truncated or query_tokens < len(query.token_ids)
    document_truncated = document.truncated or end < document_tokens
    return query_tokens + 2, end + limits.template.special - 2, query_truncated, document_truncated


def load(options: LoadOptions) -> BatchedReranker:
    """The checkpoint of a family on its device. Raises CheckpointError: weights or tokenizer do not fit config.json."""
    folder = options.folder
    identity, given = options.identity, options.identity.limits
    naming, template = _FAMILIES[identity.family]
    config = read_config(folder)
    shape, head = read_shape(config), read_head(folder, config)
    template = replace(template, longest_first=template.longest_first or not head.stored)  # as CrossEncoder, then
    limits = PairLimits(template, given.max_length, given.max_query_length)
    if limits.sequence < LEAST_SEQUENCE:
        raise CheckpointError(f"{folder}: sequences of {limits.sequence} tokens leave none for a document")
    tokenizer = read_tokenizer(folder / "tokenizer.json", names_are_text=False)  # see `tokenize`
    tokens = read_pair_tokens(tokenizer, template, shape, str(folder))
    weights = load_weights(folder, shape, naming, head, getattr(torch, options.dtype), torch.device(options.device))
    engine = EncoderEngine(PackedEncoder(shape, weights), tokens, reproducible=options.reproducible)
    pairs, arrange = PairTokenizer(tokenizer, limits), partial(document_windows, limits)
    preprocessor = Preprocessor(pairs, identity, None, arrange=arrange, threads=options.host_threads)
    lengths = partial(pair_lengths, limits)
    return BatchedReranker(engine, preprocessor, identity.fingerprint, identity.logit_bias, lengths)
