"""Loads generative rerankers: language models whose logits of one word or two are the score.

They are the document-major engine with another prompt and score head (`ScoreHead.of_tokens`). Where the document is
read first, as in MonoQwen2-VL, its image and prefix are computed once for all its queries. Where the query is, pairs
share what is before both and the vision encoder's work, and everything after is computed pair by pair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from lakerank.errors import CheckpointError
from lakerank.model.config import read_config
from lakerank.model.engine.decoder import PackedDecoder, ScoreHead
from lakerank.model.engine.engine import DocumentMajorEngine
from lakerank.model.engine.reranker import BatchedReranker
from lakerank.model.engine.vision import PackedVision
from lakerank.model.generative.config import STATED, read_patch_shape, read_prompt
from lakerank.model.generative.tokenize import ChatTokenizer, check_vocabulary
from lakerank.model.preprocess.pipeline import Preprocessor
from lakerank.model.registry import LoadOptions
from lakerank.model.weights import build_network, check_stored, current_name, fill_network, merge_adapter, read_tensors

_HEAD = "lm_head.weight"

#: By config.json's model_type: transformers' configuration and network, and its name of a checkpoint's tensor.
_ARCHITECTURES: Mapping[str, tuple[Any, Any, Callable[[str], str]]] = {
    "qwen2_vl": (transformers.Qwen2VLConfig, transformers.Qwen2VLForConditionalGeneration, current_name),
    "qwen3_vl": (transformers.Qwen3VLConfig, transformers.Qwen3VLForConditionalGeneration, current_name),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, str),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, str),
}

#: Rows of a pair that attend at once where it is computed whole, document and all.
_QUERY_BLOCK = 1024


def load(options: LoadOptions) -> BatchedReranker:
    """The checkpoint on its device, its adapter, if any, merged into it; prompted as its family is.

    Raises CheckpointError: weights, adapter or tokenizer do not fit config.json.
    """
    folder, identity = options.folder, options.identity
    config = read_config(folder)
    prompt = read_prompt(folder, config, identity.family)
    shape = read_patch_shape(folder, config, prompt.document)
    tokenizer = ChatTokenizer(folder / "tokenizer.json", config, prompt, identity.limits, shape.merge)
    network, head = load_language_model(options, config)
    check_vocabulary(tokenizer.template, tokenizer.vision, len(head), str(folder))
    if identity.family == STATED:
        tokenizer.check_parts(str(folder), "(a word?)")
    decoder = PackedDecoder(network, ScoreHead.of_tokens(head[tokenizer.answer], prompt.scale))
    vision = PackedVision(network, shape) if hasattr(network.model, "visual") else None
    engine = DocumentMajorEngine(decoder, vision, query_block=_QUERY_BLOCK, reproducible=options.reproducible)
    patches, threads = shape if prompt.document.image else None, options.host_threads
    preprocessor = Preprocessor(tokenizer, identity, patches, arrange=tokenizer.arrange, threads=threads)
    return BatchedReranker(engine, preprocessor, identity.fingerprint, identity.logit_bias, launch=engine.overlapped)


def load_language_model(
    options: LoadOptions, values: Mapping[str, Any], unused: frozenset[str] = frozenset()
) -> tuple[Any, Tensor]:
    """A checkpoint's network without its language head, an adapter merged into it, and that head (V, h), on a device.

    `values` are those of config.json, `unused` are other tensors. Raises CheckpointError: the weights or the adapter do
    not fit them.
    """
    folder = options.folder
    config, network_class, current = _ARCHITECTURES[values["model_type"]]
    network = build_network(config, network_class, values, str(folder))
    network.lm_head = nn.Identity()
    check_stored(network, folder, current, unused | {_HEAD})
    tensors = read_tensors(folder, getattr(torch, options.dtype), current, unused)
    head = tensors.pop(_HEAD, None)
    fill_network(network, tensors, str(folder))
    _check_head(head, network.get_input_embeddings().weight, values, str(folder))
    if options.adapter is not None:
        merge_adapter(network, options.adapter, current)
    network.to(options.device)
    return network, network.get_input_embeddings().weight if head is None else head.to(options.device)


def _check_head(head: Tensor | None, embeddings: Tensor, config: Mapping[str, Any], source: str) -> None:
    """A tied head is not stored, or equals the embeddings; an untied one has their shape."""
    tied = config.get("tie_word_embeddings", (config.get("text_config") or {}).get("tie_word_embeddings"))
    if head is None and tied is False:
        raise CheckpointError(f"{source}: {_HEAD} is missing, and config.json ties it to no embeddings")
    if head is not None and head.shape != embeddings.shape:
        raise CheckpointError(f"{source}: {_HEAD} {tuple(head.shape)}, not {tuple(embeddings.shape)}")
    if head is not None and tied and not torch.equal(head, embeddings):
        raise CheckpointError(f"{source}: {_HEAD} differs from the embeddings that config.json ties it to")
