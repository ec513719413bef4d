"""Loads KaLM-Rerankers: the document-major engine, whose documents an encoder reads."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import T5Gemma2Config, T5Gemma2ForConditionalGeneration

from lakerank.errors import CheckpointError
from lakerank.model.checkpoint import stored_tensors
from lakerank.model.config import read_config
from lakerank.model.engine.decoder import PackedDecoder, ScoreHead
from lakerank.model.engine.engine import DocumentMajorEngine
from lakerank.model.engine.reranker import BatchedReranker, PairLengths
from lakerank.model.inputs import EncodedInput
from lakerank.model.kalm.config import read_settings
from lakerank.model.kalm.encoder import PooledEncoder
from lakerank.model.kalm.tokenize import KalmTokenizer
from lakerank.model.preprocess.pipeline import Preprocessor
from lakerank.model.preprocess.tokenizer import TextTokenizer, read_tokenizer
from lakerank.model.registry import LoadOptions
from lakerank.model.weights import assign_tensors, check_stored, read_tensors

#: Tensors that no text needs, or that are tied to the encoder's embeddings.
_UNUSED = (
    "model.encoder.vision_tower.",
    "model.encoder.multi_modal_projector.",
    "model.decoder.embed_tokens.",
    "lm_head.",
)

#: A vision encoder that is never used, in place of the checkpoint's.
_NO_VISION = {"model_type": "siglip_vision_model", "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1}

_OLD_NAME = re.compile(r"^model\.encoder\.(?=(layers|norm|embed_tokens)\.)")


def load(options: LoadOptions) -> BatchedReranker:
    """The checkpoint on its device. Raises CheckpointError: weights or tokenizer do not fit config.json."""
    folder, identity = options.folder, options.identity
    settings, values = read_settings(folder), read_config(folder)
    network = _build(values, str(folder))
    unused = frozenset(name for name in stored_tensors(folder) if name.startswith(_UNUSED))
    check_stored(network, folder, _current_name, unused)
    assign_tensors(network, read_tensors(folder, getattr(torch, options.dtype), _current_name, unused))
    network.to(options.device)
    encoder, decoder = network.model.encoder.text_model, network.model.decoder
    window = _window(decoder.config) or decoder.config.max_position_embeddings
    text = TextTokenizer(read_tokenizer(folder / "tokenizer.json", names_are_text=False))
    tokenizer = KalmTokenizer(text, settings, identity.limits, window, str(folder))
    embeddings = encoder.embed_tokens.weight
    if text.largest >= len(embeddings):
        raise CheckpointError(f"{folder}: token ids up to {text.largest}, but an embedding of {len(embeddings)}")
    decoder.embed_tokens = encoder.embed_tokens
    head = ScoreHead.of_tokens(embeddings[tokenizer.yes], embeddings[tokenizer.no])
    stacks = [PackedDecoder(SimpleNamespace(config=stack.config, model=stack), head) for stack in (encoder, decoder)]
    slides = _window(encoder.config) or encoder.config.max_position_embeddings
    pooled = PooledEncoder(
        (stacks[0], stacks[1]), tokenizer.preamble, settings.pooling, ((slides + 1) // 2, slides // 2 + 1)
    )
    engine = DocumentMajorEngine(stacks[1], None, encoder=pooled, reproducible=options.reproducible)
    preprocessor = Preprocessor(tokenizer, identity, None, threads=options.host_threads)
    return BatchedReranker(
        engine, preprocessor, identity.fingerprint, identity.logit_bias, pair_lengths, state_dtype=options.dtype
    )


def pair_lengths(query: EncodedInput, document: EncodedInput) -> PairLengths:
    """Lengths of a pair: of the decoder's prompt and of what the encoder reads, or has read."""
    known = document.state is not None and document.state.encoded
    tokens = document.state.tokens if known and document.state else len(document.token_ids)
    return query.end, tokens, query.truncated, document.truncated


def _window(config: Any) -> int | None:
    return config.sliding_window if "sliding_attention" in config.layer_types else None


def _build(values: Mapping[str, Any], source: str) -> Any:
    """transformers' network of a config.json on no device, without what reads images and without its language head."""
    values = copy.deepcopy(dict(values))
    values["encoder"]["vision_config"] = _NO_VISION
    try:
        config = T5Gemma2Config.from_dict(values)
        with torch.device("meta"):
            network = T5Gemma2ForConditionalGeneration(config)
    except Exception as error:  # transformers and its validators raise many kinds
        raise CheckpointError(f"{source}: config.json does not describe a T5Gemma 2: {error}") from error
    network.lm_head = network.model.decoder.embed_tokens = nn.Identity()
    network.model.encoder.vision_tower = network.model.encoder.multi_modal_projector = nn.Identity()
    embeddings = network.model.encoder.text_model.embed_tokens
    embeddings.embed_scale = torch.tensor(embeddings.scalar_embed_scale)
    return network


def _current_name(name: str) -> str:
    """Newer transformers' name of a tensor, whichever naming a checkpoint follows."""
    return _OLD_NAME.sub("model.encoder.text_model.", name)
