"""Qwen3-VL's vision encoder by transformers' own forward, image by image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lakerank.model.engine.linear import RowProducts
from lakerank.model.inputs import Grid
from lakerank.model.preprocess.images import PatchShape


class ImageByImage:
    """Visual tokens of images, each by itself: what its tokens are depends on no other. To be used by one thread."""

    def __init__(self, visual: Any, shape: PatchShape) -> None:
        self._visual = visual
        self._shape = shape
        device = visual.pos_embed.weight.device
        self._mean = torch.tensor(shape.mean, device=device)[None, :, None, None]
        self._std = torch.tensor(shape.std, device=device)[None, :, None, None]
        self.products = RowProducts()

    def weights(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """None: images share no product of matrices."""
        yield from ()

    def tokens(self, pixels: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        """Of each image its visual tokens, with the features for the decoder's first n layers: (V, (1 + n) * h)."""
        counts = [rows * columns for rows, columns in grids]
        parts = zip(torch.split(pixels, counts), grids, strict=True)
        return [self._one(part, grid) for part, grid in parts]

    def _one(self, pixels: Tensor, grid: Grid) -> Tensor:
        values = pixels.float().mul_(1 / 255).sub_(self._mean).div_(self._std)
        frames = values.unsqueeze(2).expand(-1, -1, self._shape.frames, -1, -1)  # a still image stands in every frame
        seen = self._visual(
            frames.flatten(1).to(self._visual.dtype), grid_thw=torch.tensor([[1, *grid]], device=pixels.device)
        )
        return torch.cat([seen.pooler_output, *seen.deepstack_features], dim=1)
