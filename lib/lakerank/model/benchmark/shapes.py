"""Checkpoints of seeded random weights in the published layout: for asking a shape's speed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLConfig

from lakerank.fingerprint import fingerprint
from lakerank.model.checkpoint import EMBEDDED, WEIGHTS_NAME, read_json
from lakerank.model.network import JinaVLForRanking
from lakerank.model.weights import published_config, published_name

#: Files that a random checkpoint shares with the bundled one.
_SHARED = ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")
_TOKEN_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a network; M-RoPE sections keep the published 16 : 24 : 24 of half a head's width."""

    vocabulary: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    key_value_heads: int
    vision_depth: int
    vision_width: int
    vision_heads: int


#: `random-80m` spends 2.5 times as much on an image as on its tokens afterwards, as the 2B model does; `2b` is
#: jina-reranker-m0's own shape (its config.json), with the bundled tokenizer; `tiny` is for tests.
SHAPES: Mapping[str, Shape] = {
    "random-80m": Shape(12288, 640, 1792, 13, 10, 2, 10, 384, 6),
    "2b": Shape(151936, 1536, 8960, 28, 12, 2, 32, 1280, 16),
    "tiny": Shape(12288, 64, 128, 2, 2, 1, 1, 64, 2),
}


def random_checkpoint(folder: Path, shape: Shape, dtype: str, seed: int = 0) -> Path:
    """The checkpoint of `shape` under `folder`, written now unless it is there already; returns where it is.

    A weight's variance is one over its inputs, so that nothing overflows and logits differ by more than rounding.
    """
    name = fingerprint({"shape": asdict(shape), "dtype": dtype, "seed": seed})
    target = folder / f"random-{name[:12]}"
    if (target / "config.json").is_file():
        return target
    target.mkdir(parents=True, exist_ok=True)
    bundled = read_json(EMBEDDED / "config.json")
    config = _config(shape, {key: bundled[key] for key in _TOKEN_IDS})
    with torch.device("meta"):
        network = JinaVLForRanking(config)
    generator = torch.Generator().manual_seed(seed)
    expected = sorted(network.state_dict().items())
    tensors = {published_name(key): _filled(key, like, generator, dtype) for key, like in expected}
    save_file(tensors, target / WEIGHTS_NAME, metadata={"format": "pt"})
    for file in _SHARED:
        shutil.copyfile(EMBEDDED / file, target / file)
    values = published_config(config) | {"torch_dtype": dtype, "score_token_id": bundled.get("score_token_id", 100)}
    (target / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return target


def _filled(name: str, like: Tensor, generator: torch.Generator, dtype: str) -> Tensor:
    kind = getattr(torch, dtype)
    if name.endswith("bias"):
        return torch.zeros(like.shape, dtype=kind)
    if like.dim() == 1:  # the scale of a norm
        return torch.ones(like.shape, dtype=kind)
    inputs = like.numel() // like.shape[0]
    weights: Tensor = torch.randn(like.shape, generator=generator) * inputs**-0.5
    return weights.to(kind)


def _config(shape: Shape, token_ids: Mapping[str, int]) -> Qwen2VLConfig:
    half = shape.hidden_size // shape.heads // 2
    sections = [half // 4, (half - half // 4) // 2]
    return Qwen2VLConfig(
        text_config={
            "vocab_size": shape.vocabulary,
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.key_value_heads,
            "pad_token_id": None,
            "bos_token_id": None,
            "eos_token_id": None,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [*sections, half - sum(sections)],
            },
        },
        vision_config={
            "depth": shape.vision_depth,
            "embed_dim": shape.vision_width,
            "hidden_size": shape.hidden_size,
            "num_heads": shape.vision_heads,
        },
        **token_ids,
    )
