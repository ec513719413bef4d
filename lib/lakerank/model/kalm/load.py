"""Loads KaLM-Rerankers: the document-major engine, whose documents an encoder reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import T5Gemma2Config, T5Gemma2ForConditionalGeneration

from lakerank.model.checkpoint import stored_tensors
from lakerank.model.config import read_config
from lakerank.model.engine.decoder import PackedDecoder, ScoreHead
from lakerank.model.engine.engine import DocumentMajorEngine
from lakerank.model.engine.reranker import BatchedReranker
from lakerank.model.generative.tokenize import ChatTokenizer, check_vocabulary
from lakerank.model.inputs import DocumentQueries, EncodedInput
from lakerank.model.kalm.config import PROMPT, read_pooling
from lakerank.model.kalm.encoder import PooledEncoder
from lakerank.model.preprocess.pipeline import Preprocessor
from lakerank.model.registry import LoadOptions
from lakerank.model.weights import assign_tensors, build_network, check_stored, read_tensors

#: Tensors that no text needs, or that are tied to the encoder's embeddings.
_UNUSED = ("model.encoder.vision_tower", "model.encoder.multi_modal", "model.decoder.embed_tokens", "lm_head")

#: A vision encoder that is never used, in place of the checkpoint's.
_NO_VISION = {"model_type": "siglip_vision_model", "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1}

_OLD_NAME = re.compile(r"^model\.encoder\.(?=(layers|norm|embed_tokens)\.)")


def load(options: LoadOptions) -> BatchedReranker:
    """The checkpoint on its device. Raises CheckpointError: weights or tokenizer do not fit config.json."""
    folder, identity = options.folder, options.identity
    values = read_config(folder)
    network = _build(values, str(folder))
    unused = frozenset(name for name in stored_tensors(folder) if name.startswith(_UNUSED))
    check_stored(network, folder, _current_name, unused)
    assign_tensors(network, read_tensors(folder, getattr(torch, options.dtype), _current_name, unused))
    network.to(options.device)
    encoder, decoder = network.model.encoder.text_model, network.model.decoder
    decoder.embed_tokens, rows = encoder.embed_tokens, encoder.embed_tokens.weight
    tokenizer = ChatTokenizer(folder / "tokenizer.json", values, PROMPT, identity.limits, 1, _window(decoder.config))
    check_vocabulary(tokenizer.template, tokenizer.vision, len(rows), str(folder))
    tokenizer.check_parts(str(folder))
    head, window = ScoreHead.of_tokens(rows[tokenizer.answer]), _window(encoder.config)
    read, asked = (PackedDecoder(SimpleNamespace(config=half.config, model=half), head) for half in (encoder, decoder))
    pooled = PooledEncoder(read, asked, read_pooling(folder), ((window + 1) // 2, window // 2 + 1))
    engine = DocumentMajorEngine(asked, None, encoder=pooled, reproducible=options.reproducible)
    preprocessor = Preprocessor(tokenizer, identity, None, arrange=_arrange, threads=options.host_threads)
    of_scorer = identity.fingerprint, identity.logit_bias
    return BatchedReranker(engine, preprocessor, *of_scorer, state_dtype=options.dtype, launch=engine.overlapped)


def _arrange(document: EncodedInput, queries: tuple[EncodedInput, ...]) -> DocumentQueries:
    """A document's prefix ends with what the prompts of its queries begin with; the document has no positions there."""
    shared = queries[0].preamble
    return DocumentQueries(replace(document, preamble=shared, end=shared.end if shared else 0), queries)


def _window(config: Any) -> int:
    """How many tokens a layer sees that sees the fewest."""
    slides = "sliding_attention" in config.layer_types
    return int(config.sliding_window if slides else config.max_position_embeddings)


def _build(values: Mapping[str, Any], source: str) -> Any:
    """transformers' network of a config.json on no device, without what reads images and without its language head."""
    values = {**values, "encoder": {**values["encoder"], "vision_config": _NO_VISION}}
    network = build_network(T5Gemma2Config, T5Gemma2ForConditionalGeneration, values, source)
    network.lm_head = network.model.decoder.embed_tokens = nn.Identity()
    network.model.encoder.vision_tower = network.model.encoder.multi_modal_projector = nn.Identity()
    embeddings = network.model.encoder.text_model.embed_tokens
    embeddings.embed_scale = torch.tensor(embeddings.scalar_embed_scale)
    return network


def _current_name(name: str) -> str:
    """Newer transformers' name of a tensor, whichever naming a checkpoint follows."""
    return _OLD_NAME.sub("model.encoder.text_model.", name)
