"""Checkpoints of seeded random weights in the published layouts, for measuring a shape's speed and for tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
)
from transformers import Qwen3VLForConditionalGeneration as Qwen3VL

from checkpoints.decoders import write_prompt
from checkpoints.encoders import write_bert, write_bge, write_jina, write_modern
from lakerank.fingerprint import fingerprint
from lakerank.model.checkpoint import EMBEDDED, WEIGHTS_NAME, read_json
from lakerank.model.generative.config import PROMPTS
from lakerank.model.jina_m0.weights import JinaVLForRanking
from lakerank.model.registry import M0
from lakerank_benchmark.pages import WORDS
from lakerank_benchmark.request import BERT, BGE, JINA, MODERN
from lakerank_pictograms.network import Shape, network_config, published_config
from lakerank_training.weights import published_name, save_checkpoint

#: Of decoders. `random-80m` spends 2.5 times as much on an image as on its tokens afterwards, as the 2B model does;
#: `2b` is jina-reranker-m0's own shape (its config.json), with the bundled tokenizer; `tiny` is for tests.
SHAPES: Mapping[str, Shape] = {
    "random-80m": Shape(12288, 640, 1792, 13, 10, 2, 10, 384, 6),
    "2b": Shape(151936, 1536, 8960, 28, 12, 2, 32, 1280, 16),
    "tiny": Shape(12288, 64, 128, 2, 2, 1, 1, 64, 2),
}

#: Of cross-encoders: width, layers, heads, inner width and positions. `published` is the published network but for its
#: vocabulary, which only the embeddings have (of BERT MiniLM-L12, of ModernBERT gte's); `small` is as deep as jina's,
#: and half as wide, MiniLM-L6 or Ettin's of 32 M, for measuring in minutes.
ENCODER_SHAPES: Mapping[str, Mapping[str, tuple[int, int, int, int, int]]] = {
    BGE: {"published": (1024, 24, 16, 4096, 8194), "small": (384, 12, 6, 1536, 8194)},
    JINA: {"published": (768, 12, 12, 3072, 1026), "small": (384, 12, 6, 1536, 1026)},
    BERT: {"published": (384, 12, 12, 1536, 512), "small": (384, 6, 12, 1536, 512)},
    MODERN: {"published": (768, 22, 12, 1152, 8192), "small": (384, 10, 6, 576, 8192)},
}
_ENCODER_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_ENCODER_VOCABULARY = 12288

#: How each family is written.
WRITERS: Mapping[str, Callable[..., object]] = {
    BGE: write_bge, JINA: write_jina, BERT: write_bert, MODERN: write_modern,
}  # fmt: skip

#: Words that answer, which the bundled vocabulary lacks, and names that Qwen3's tokenizers add without calling special.
_ANSWERS = ("True", "False", "yes", "no", "Yes", "1", "0")
_THOUGHTS = ("<think>", "</think>")
#: Tokens of images, by config.json's names of their ids.
TOKEN_IDS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}

_CAUSAL: Mapping[str, tuple[Any, Any]] = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}

#: Layers of Qwen3-VL's vision encoder whose states go to the decoder's first layers.
_DEEP = 3


def random_checkpoint(folder: Path, family: str, shape: Shape, dtype: str, seed: int = 0) -> Path:
    """The checkpoint of a decoder under `folder`, written now unless it is there already; returns where it is.

    A weight's variance is one over its inputs, so that nothing overflows and logits differ by more than rounding. For
    generative families the vocabulary is made large enough for the bundled tokenizer and the words that answer; the
    language head is the embeddings.
    """
    parts = {} if family == M0 else {"family": family}  # folders' names are older than the other families
    name = fingerprint({**parts, "shape": asdict(shape), "dtype": dtype, "seed": seed})[:12]
    target = folder / "-".join(("random", *parts.values(), name))
    if not (target / "config.json").is_file():
        target.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(seed)
        if family == M0:
            _write_m0(target, shape, dtype, generator)
        else:
            _write_generative(target, family, shape, dtype, generator)
    return target


def random_encoder(folder: Path, family: str, shape: str, dtype: str) -> Path:
    """The checkpoint of a cross-encoder under `folder`, one of ENCODER_SHAPES; as `random_checkpoint`."""
    *values, positions = ENCODER_SHAPES[family][shape]
    sizes = dict(zip(_ENCODER_SIZES, values, strict=True)) | {"vocab_size": _ENCODER_VOCABULARY}
    target = folder / f"random-{family}-{fingerprint({**sizes, 'positions': positions, 'dtype': dtype})[:12]}"
    if not (target / "config.json").is_file():
        WRITERS[family](target, positions, words=WORDS, dtype=dtype, **sizes)
    return target


def _write_m0(target: Path, shape: Shape, dtype: str, generator: torch.Generator) -> None:
    bundled = read_json(EMBEDDED / "config.json")
    token_ids = {key: bundled[key] for key in TOKEN_IDS}
    with torch.device("meta"):
        network = JinaVLForRanking(network_config(shape, token_ids, padding=None))
    network.load_state_dict(_random_tensors(network.state_dict(), dtype, generator), assign=True)
    for file in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copyfile(EMBEDDED / file, target / file)
    score = {"score_token_id": bundled.get("score_token_id", 100)}
    save_checkpoint(target, network, published_config(network.config) | score)


def _write_generative(target: Path, family: str, shape: Shape, dtype: str, generator: torch.Generator) -> None:
    ids = _write_tokenizer(target)
    token_ids = {key: ids[name] for key, name in TOKEN_IDS.items()}
    network, config = _network(family, shape, max(max(ids.values()) + 1, shape.vocabulary), token_ids)
    state = {key: value for key, value in network.state_dict().items() if key != "lm_head.weight"}
    published = published_name if family == "monoqwen2-vl" else str
    tensors = {published(key): value for key, value in _random_tensors(state, dtype, generator).items()}
    save_file(tensors, target / WEIGHTS_NAME, metadata={"format": "pt"})
    mean = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} if family == "qwen3-vl-reranker" else {}
    side = config.get("vision_config", {}).get("patch_size", 14)
    processor = read_json(EMBEDDED / "preprocessor_config.json") | mean | {"patch_size": side}
    (target / "preprocessor_config.json").write_text(json.dumps(processor, indent=2), encoding="utf-8")
    write_prompt(target, PROMPTS[family])
    (target / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _random_tensors(state: Mapping[str, Tensor], dtype: str, generator: torch.Generator) -> dict[str, Tensor]:
    """No biases, norms of scale one, weights of variance one over inputs; in the order of their names."""
    kind, tensors = getattr(torch, dtype), {}
    for name, like in sorted(state.items()):
        if name.endswith("bias"):
            tensors[name] = torch.zeros(like.shape, dtype=kind)
        elif like.dim() == 1:  # the scale of a norm
            tensors[name] = torch.ones(like.shape, dtype=kind)
        else:
            scale = (like.numel() // like.shape[0]) ** -0.5
            tensors[name] = (torch.randn(like.shape, generator=generator) * scale).to(kind)
    return tensors


def _write_tokenizer(target: Path) -> dict[str, int]:
    """The bundled tokenizer with the words that answer; ids of its added tokens, which follow the vocabulary's."""
    stored = json.loads((EMBEDDED / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary, added = stored["model"]["vocab"], stored["added_tokens"]
    for word in _ANSWERS:
        vocabulary.setdefault(word, len(vocabulary))
    added += [added[0] | {"content": name, "special": False} for name in _THOUGHTS]
    for number, token in enumerate(added, len(vocabulary)):
        token["id"] = number
    (target / "tokenizer.json").write_text(json.dumps(stored, ensure_ascii=False), encoding="utf-8")
    shutil.copyfile(EMBEDDED / "tokenizer_config.json", target / "tokenizer_config.json")
    return {token["content"]: token["id"] for token in added}


def _network(family: str, shape: Shape, vocabulary: int, token_ids: Mapping[str, int]) -> tuple[Any, Mapping[str, Any]]:
    """A network without memory, and its config.json as published."""
    text = _text_config(shape, vocabulary)
    with torch.device("meta"):
        if family == "monoqwen2-vl":
            config = network_config(shape, token_ids, padding=None)
            config.text_config.vocab_size = vocabulary
            network: Any = Qwen2VLForConditionalGeneration(config)
            return network, published_config(config) | {"architectures": ["Qwen2VLForConditionalGeneration"]}
        if (kind := PROMPTS[family].model_type) in _CAUSAL:
            config_class, network_class = _CAUSAL[kind]
            values = {**text, "model_type": kind, "architectures": [network_class.__name__]}
            values["use_sliding_window"] = False
            return network_class(config_class.from_dict(values)), values
        values = {
            "model_type": "qwen3_vl",
            "architectures": ["Qwen3VLForConditionalGeneration"],
            "text_config": {**text, "model_type": "qwen3_vl_text", "rope_scaling": _mrope(shape)},
            "vision_config": _vision_config(shape),
            "tie_word_embeddings": True,
            **token_ids,
        }
        return Qwen3VL(Qwen3VLConfig.from_dict(values)), values


def _text_config(shape: Shape, vocabulary: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads,
        "head_dim": shape.hidden_size // shape.heads,
        "hidden_act": "silu",
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "attention_bias": False,
        "tie_word_embeddings": True,
    }


def _mrope(shape: Shape) -> dict[str, Any]:
    """Sections in the published 24 : 20 : 20 of half a head's width."""
    half = shape.hidden_size // shape.heads // 2
    side = half * 5 // 16
    return {"rope_type": "default", "mrope_section": [half - 2 * side, side, side], "mrope_interleaved": True}


def _vision_config(shape: Shape) -> dict[str, Any]:
    """Patches of 16 pixels, and states of evenly spaced layers handed on."""
    deep = min(_DEEP, shape.vision_depth)
    return {
        "model_type": "qwen3_vl",
        "depth": shape.vision_depth,
        "hidden_size": shape.vision_width,
        "intermediate_size": 4 * shape.vision_width,
        "num_heads": shape.vision_heads,
        "hidden_act": "gelu_pytorch_tanh",
        "in_channels": 3,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": shape.hidden_size,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [shape.vision_depth * place // (deep + 1) for place in range(1, deep + 1)],
    }
