"""Vision encoders: Qwen2-VL's over the packed patches of several images, each alone in attention, and Qwen3-VL's.

Shapes: P patches, E their width, h the decoder's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lakerank.model.engine.decoder import mlp_rows
from lakerank.model.engine.device import to_device
from lakerank.model.engine.layout import Packed, Varlen, packed_rows
from lakerank.model.engine.linear import BatchInvariantLinear, LinearWeights, elementwise
from lakerank.model.engine.rotary import RotaryTable, rotate
from lakerank.model.inputs import Grid
from lakerank.model.preprocess.images import PatchShape

#: An image up to this many patches shares its attention call with others of as many.
SHARED_PATCHES = 1024


class PackedVision:
    """Visual tokens of images, by transformers' Qwen2-VL. Without gradients; to be used by one thread."""

    def __init__(self, network: Any, shape: PatchShape) -> None:
        visual = network.model.visual
        embed = visual.patch_embed.proj.weight
        self._shape, self._blocks, self._merger = shape, visual.blocks, visual.merger
        self._heads = network.config.vision_config.num_heads
        self.heads = (self._heads, self._heads, len(visual.blocks[0].attn.proj.weight) // self._heads)
        self.varlen: Varlen | None = None
        # A still image is in every frame: its patches are multiplied with the sum of the frames' weights.
        self._embed = embed.float().sum(dim=2).flatten(1).to(embed.dtype)  # (E, 3 * side²)
        self._mean, self._std = _channel_statistics(shape, embed.device)
        rotary = visual.rotary_pos_emb
        self._rotary = RotaryTable(rotary.inv_freq, rotary.attention_scaling, torch.float32)
        self._mlp_rows = mlp_rows(embed.device)
        self.linear = BatchInvariantLinear()

    def weights(self) -> Iterator[LinearWeights]:
        """All weights but those of later blocks, which have the first one's shapes."""
        block = self._blocks[0]
        yield LinearWeights(self._embed, None)
        for linear in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2, *self._merger_linears()):
            yield LinearWeights(linear.weight, linear.bias)

    def tokens(self, pixels: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        """Visual tokens (P / merge², h) of each image: uint8 patches (P_total, 3, side, side), concatenated."""
        counts = [rows * columns for rows, columns in grids]
        padding = self.linear.padded(len(pixels)) - len(pixels)
        hidden = self.linear(self._values(pixels, padding), self._embed)
        rotation = self._rotation(grids, padding)
        layout: Packed | list[Tensor]
        if self.varlen is None:
            layout = _attention_layout(counts, hidden.device)
        else:
            layout = packed_rows(self.varlen, counts, len(hidden), hidden.device)
        for block in self._blocks:
            hidden = self._attention(block, block.norm1(hidden), rotation, layout).add_(hidden)
            for part in self.linear.split(hidden, self._mlp_rows):
                part.add_(self._mlp(block, block.norm2(part)))
        merged = self._merge(hidden[: len(pixels)])
        return list(torch.split(merged, [count // self._shape.merge**2 for count in counts]))

    def _values(self, pixels: Tensor, padding: int) -> Tensor:
        """Normalised pixels of each patch, in the network's dtype: (P, 3, side, side) -> (P + padding, 3 * side²)."""
        values = pixels.float().mul_(1 / 255).sub_(self._mean).div_(self._std)
        return F.pad(values.flatten(1), (0, 0, 0, padding)).to(self._embed.dtype)

    def _rotation(self, grids: Sequence[Grid], padding: int) -> Tensor:
        """(2, P + padding, 1, F): the first half of the frequencies follows a patch's row, the second its column."""
        places = [patch_positions(rows, columns, self._shape.merge) for rows, columns in grids]
        positions = np.concatenate([*places, np.zeros((2, padding), dtype=np.int64)], axis=1)
        return patch_rotation(self._rotary, positions, self._embed.device)

    def _attention(self, block: Any, normed: Tensor, rotation: Tensor, layout: Packed | list[Tensor]) -> Tensor:
        qkv = self.linear(normed, block.attn.qkv.weight, block.attn.qkv.bias)
        states = qkv.view(len(normed), 3 * self._heads, -1)  # (P, 3 * heads, D)
        query, key = rotate(states[:, : 2 * self._heads], rotation).chunk(2, dim=1)
        value = states[:, 2 * self._heads :]
        out = _attend(query, key, value, layout)
        return self.linear(out.flatten(1), block.attn.proj.weight, block.attn.proj.bias)

    def _mlp(self, block: Any, normed: Tensor) -> Tensor:
        inner = self.linear(normed, block.mlp.fc1.weight, block.mlp.fc1.bias)
        return self.linear(elementwise(block.mlp.act, inner), block.mlp.fc2.weight, block.mlp.fc2.bias)

    def _merge(self, hidden: Tensor) -> Tensor:
        """(P, E) -> (P / merge², h)."""
        first, last = self._merger_linears()
        merged = self._merger.ln_q(hidden).view(-1, first.in_features)
        padded = F.pad(merged, (0, 0, 0, self.linear.padded(len(merged)) - len(merged)))
        inner = elementwise(self._merger.mlp[1], self.linear(padded, first.weight, first.bias))
        return self.linear(inner, last.weight, last.bias)[: len(merged)]

    def _merger_linears(self) -> tuple[Any, Any]:
        return self._merger.mlp[0], self._merger.mlp[2]


class ImageByImage:
    """Visual tokens of images by transformers' Qwen3-VL, each by itself. To be used by one thread."""

    def __init__(self, visual: Any, shape: PatchShape) -> None:
        self._visual, self._shape = visual, shape
        self._mean, self._std = _channel_statistics(shape, visual.pos_embed.weight.device)
        self.linear = BatchInvariantLinear()

    def weights(self) -> Iterator[LinearWeights]:
        """None: images share no linear layer."""
        yield from ()

    def tokens(self, pixels: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        """Of each image its visual tokens, with the features for the decoder's first n layers: (V, (1 + n) * h)."""
        counts = [rows * columns for rows, columns in grids]
        parts = zip(torch.split(pixels, counts), grids, strict=True)
        return [self._one(part, grid) for part, grid in parts]

    def _one(self, pixels: Tensor, grid: Grid) -> Tensor:
        values = pixels.float().mul_(1 / 255).sub_(self._mean).div_(self._std)
        frames = values.unsqueeze(2).expand(-1, -1, self._shape.frames, -1, -1)  # a still image fills every frame
        grids = to_device(np.array([[1, *grid]]), pixels.device)
        seen = self._visual(frames.flatten(1).to(self._visual.dtype), grid_thw=grids)
        return torch.cat([seen.pooler_output, *seen.deepstack_features], dim=1)


def _channel_statistics(shape: PatchShape, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of a patch: two of (1, 3, 1, 1)."""
    mean, std = (torch.tensor(values, device=device)[None, :, None, None] for values in (shape.mean, shape.std))
    return mean, std


def patch_positions(rows: int, columns: int, merge: int) -> np.ndarray:
    """Row and column of every patch, those of a visual token adjacent: (2, P)."""
    lattice = np.indices((rows, columns)).reshape(2, rows // merge, merge, columns // merge, merge)
    return lattice.transpose(0, 1, 3, 2, 4).reshape(2, -1)


def patch_rotation(table: RotaryTable, places: np.ndarray, device: torch.device) -> Tensor:
    """Rotation of patches at rows and columns (2, P): (2, P, 1, F), half of the frequencies by row, half by column."""
    positions, end = to_device(places, device), int(places.max()) + 1
    return torch.cat([table.look_up(axis, [table.size], end) for axis in (positions[:1], positions[1:])], dim=-1)


def _attend(query: Tensor, key: Tensor, value: Tensor, layout: Packed | list[Tensor]) -> Tensor:
    """Attention within each image: three of (P, heads, D) -> (P, heads, D)."""
    if isinstance(layout, Packed):
        return layout(query, key, value)[0]
    out = torch.zeros_like(query)
    for index in layout:
        q, k, v = (rows[index].transpose(1, 2) for rows in (query, key, value))  # (B, heads, P, D)
        out[index] = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    return out


def _attention_layout(counts: Sequence[int], device: torch.device) -> list[Tensor]:
    """Rows of the images of each call, (B, P): a large image alone, small ones with others of as many patches."""
    starts = np.cumsum([0, *counts])
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for start, count in zip(starts.tolist(), counts, strict=False):
        groups[count, start if count > SHARED_PATCHES else 0].append(start)
    indices = [np.array(members)[:, None] + np.arange(count)[None] for (count, _), members in groups.items()]
    return [to_device(index, device) for index in indices]
