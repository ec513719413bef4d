"""Checkpoints of seeded random weights in the published layout: for asking a shape's speed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from lakerank.fingerprint import fingerprint
from lakerank.model.checkpoint import EMBEDDED, read_json
from lakerank.model.jina_m0.weights import JinaVLForRanking, Shape, network_config, save_checkpoint

#: Files that a random checkpoint shares with the bundled one.
_SHARED = ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")
_TOKEN_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


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
    config = network_config(shape, {key: bundled[key] for key in _TOKEN_IDS}, padding=None)
    with torch.device("meta"):
        network = JinaVLForRanking(config)
    generator = torch.Generator().manual_seed(seed)
    filled = {key: filled_like(key, like, generator, dtype) for key, like in sorted(network.state_dict().items())}
    network.load_state_dict(filled, assign=True)
    for file in _SHARED:
        shutil.copyfile(EMBEDDED / file, target / file)
    save_checkpoint(target, network, {"score_token_id": bundled.get("score_token_id", 100)})
    return target


def filled_like(name: str, like: Tensor, generator: torch.Generator, dtype: str) -> Tensor:
    """Random values for the tensor of a name: no biases, norms of scale one, weights of variance one over inputs."""
    kind = getattr(torch, dtype)
    if name.endswith("bias"):
        return torch.zeros(like.shape, dtype=kind)
    if like.dim() == 1:  # the scale of a norm
        return torch.ones(like.shape, dtype=kind)
    inputs = like.numel() // like.shape[0]
    weights: Tensor = torch.randn(like.shape, generator=generator) * inputs**-0.5
    return weights.to(kind)
