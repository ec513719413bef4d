"""Packed images against transformers' own encoder, and each with the bits that it has alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lakerank.limits import Limits
from lakerank.model.engine.linear import BatchInvariantLinear
from lakerank.model.engine.vision import PackedVision
from lakerank.model.jina_m0.config import read_settings
from lakerank.model.jina_m0.weights import load_network
from lakerank.model.preprocess.images import load_patches
from oracles.reference import normalised

SIZES = [(60, 60), (200, 120), (60, 60), (1000, 30), (700, 640)]


@pytest.mark.parametrize("linear", [BatchInvariantLinear(), BatchInvariantLinear(64)])
def test_images_are_encoded_as_transformers_does(
    tiny_checkpoint: Path, make_image: Callable[..., bytes], linear: BatchInvariantLinear
) -> None:
    settings = read_settings(tiny_checkpoint, "float32")
    network = load_network(tiny_checkpoint, settings)
    vision = PackedVision(network, settings.patches)
    vision.linear = linear
    images = [load_patches(make_image(*size, seed=seed), Limits(), settings.patches) for seed, size in enumerate(SIZES)]
    with torch.inference_mode():
        pixels = torch.from_numpy(np.concatenate([image.pixels for image in images]))
        together = vision.tokens(pixels, [image.grid for image in images])
        for image, tokens in zip(images, together, strict=True):
            values = torch.from_numpy(normalised(image.pixels, settings.patches.mean, settings.patches.std))
            frames = values.unsqueeze(2).expand(-1, -1, 2, -1, -1).reshape(len(values), -1)
            expected = network.model.visual(frames, grid_thw=torch.tensor([[1, *image.grid]])).pooler_output
            torch.testing.assert_close(tokens, expected, atol=1e-4, rtol=1e-4)
            (alone,) = vision.tokens(torch.from_numpy(image.pixels), [image.grid])
            assert torch.equal(alone, tokens)
