"""Packed images against transformers' own encoders, and each with the bits that it has alone."""

from __future__ import annotations

import copy
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from lakerank.limits import Limits
from lakerank.model.engine.linear import BatchInvariantLinear
from lakerank.model.engine.vision import PackedVision
from lakerank.model.jina_m0.config import read_settings
from lakerank.model.jina_m0.weights import load_network
from lakerank.model.preprocess.images import PatchShape, load_patches
from oracles.reference import normalised

SIZES = [(64, 64), (200, 120), (64, 64), (1000, 40), (700, 640)]


def qwen2_vl(checkpoint: Path) -> tuple[Any, PatchShape]:
    settings = read_settings(checkpoint, "float32")
    return load_network(checkpoint, settings), settings.patches


def qwen3_vl(_: Path) -> tuple[Any, PatchShape]:
    """States after the first and the last layer are passed on; images have fewer and more than 8 x 8 places."""
    vision = {
        "depth": 3, "hidden_size": 64, "intermediate_size": 96, "num_heads": 4, "out_hidden_size": 32,
        "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 2],
    }  # fmt: skip
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 8}
    network = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision)).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return network, PatchShape(16, 2, 2, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("linear", [BatchInvariantLinear(), BatchInvariantLinear(64)])
@pytest.mark.parametrize("make", [qwen2_vl, qwen3_vl])
def test_images_are_encoded_as_transformers_does(
    tiny_checkpoint: Path, make_image: Callable[..., bytes], make: Callable[..., Any], linear: BatchInvariantLinear
) -> None:
    network, shape = make(tiny_checkpoint)
    vision = PackedVision(copy.deepcopy(network), shape)
    vision.linear = linear
    images = [load_patches(make_image(*size, seed=seed), Limits(), shape) for seed, size in enumerate(SIZES)]
    with torch.inference_mode():
        pixels = torch.from_numpy(np.concatenate([image.pixels for image in images]))
        together = vision.tokens(pixels, [image.grid for image in images])
        for image, tokens in zip(images, together, strict=True):
            values = torch.from_numpy(normalised(image.pixels, shape.mean, shape.std))
            frames = values.unsqueeze(2).expand(-1, -1, 2, -1, -1).reshape(len(values), -1)
            seen = network.model.visual(frames, grid_thw=torch.tensor([[1, *image.grid]]))
            expected = torch.cat([seen.pooler_output, *getattr(seen, "deepstack_features", ())], dim=1)
            torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-5)
            (alone,) = vision.tokens(torch.from_numpy(image.pixels), [image.grid])
            assert torch.equal(alone, tokens)


@pytest.mark.parametrize("make", [qwen2_vl, qwen3_vl])
def test_products_on_a_cpu_are_of_packed_weights(tiny_checkpoint: Path, make: Callable[..., Any]) -> None:
    network, shape = make(tiny_checkpoint)
    probed = [weights.weight.is_mkldnn for weights in PackedVision(network, shape).weights()]
    assert set(probed) == {platform.machine() == "x86_64"}
    linears = [part.weight for part in network.model.visual.modules() if isinstance(part, torch.nn.Linear)]
    assert not any(weight.numel() for weight in linears) or platform.machine() != "x86_64", "twice in memory"
