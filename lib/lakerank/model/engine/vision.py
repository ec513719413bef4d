"""Vision encoders of Qwen2-VL and Qwen3-VL over the packed patches of several images, each alone in attention.

Shapes: P patches, E their width, h the decoder's.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lakerank.model.engine.attention import attend_alone
from lakerank.model.engine.decoder import mlp_rows
from lakerank.model.engine.device import to_device
from lakerank.model.engine.layout import Packed, Varlen, packed_rows
from lakerank.model.engine.linear import BatchInvariantLinear, LinearWeights, elementwise
from lakerank.model.engine.rotary import RotaryTable, rotate
from lakerank.model.inputs import Grid
from lakerank.model.preprocess.images import PatchShape

#: An image up to this many patches shares its attention call with others of as many.
SHARED_PATCHES = 256


class VisionLayer(NamedTuple):
    """Weights of a layer, whose norms are before attention and MLP."""

    norm: nn.LayerNorm
    mlp_norm: nn.LayerNorm
    activation: Callable[[Tensor], Tensor]
    query_key_value: LinearWeights  # (3 E, E)
    out: LinearWeights
    up: LinearWeights
    down: LinearWeights


class Merger(NamedTuple):
    """Makes one visual token of merge² patches; the norm is of each patch or, as wide as all, of them joined."""

    norm: nn.LayerNorm
    first: LinearWeights  # (merge² E, merge² E)
    last: LinearWeights  # (h, merge² E)


class ImageLayout(NamedTuple):
    """Images whose rows attend `alone`, and rows (B, P) of B that share a call, all of P patches."""

    alone: Sequence[slice]
    shared: Sequence[Tensor]


class PackedVision:
    """Visual tokens of images, by transformers' Qwen2-VL or Qwen3-VL, whose weights it takes.

    Without gradients; to be used by one thread.
    Qwen3-VL adds learned positions to patches, and passes states of some layers on to the decoder's first (DeepStack).
    """

    def __init__(self, network: Any, shape: PatchShape) -> None:
        visual = network.model.visual
        embed = visual.patch_embed.proj
        # A still image is in every frame: its patches are multiplied with the sum of the frames' weights.
        summed = embed.weight.float().sum(dim=2).flatten(1).to(embed.weight.dtype)  # (E, 3 * side²)
        self._shape, self._embed = shape, LinearWeights(summed, embed.bias).packed()
        self._learned = visual.pos_embed.weight.float() if hasattr(visual, "pos_embed") else None  # (places, E)
        self._layers = [_read_layer(block) for block in visual.blocks]
        self._merger = _read_merger(visual.merger)
        deep = zip(
            getattr(visual, "deepstack_visual_indexes", ()), getattr(visual, "deepstack_merger_list", ()), strict=True
        )
        self._deep = {number: _read_merger(merger) for number, merger in deep}
        heads = network.config.vision_config.num_heads
        self.heads = (heads, heads, len(self._layers[0].out.weight) // heads)
        self.varlen: Varlen | None = None
        self._mean, self._std = _channel_statistics(shape, summed.device)
        rotary = visual.rotary_pos_emb
        self._rotary = RotaryTable(rotary.inv_freq, rotary.attention_scaling, torch.float32)
        self._mlp_rows = mlp_rows(summed.device)
        self.linear = BatchInvariantLinear()

    def weights(self) -> Iterator[LinearWeights]:
        """All weights but those of later layers and mergers, which have the first one's shapes."""
        layer, merger = self._layers[0], self._merger
        yield from (self._embed, layer.query_key_value, layer.out, layer.up, layer.down, merger.first, merger.last)

    def tokens(self, pixels: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        """Visual tokens (P / merge², h) of each image: uint8 patches (P_total, 3, side, side), concatenated.

        Of Qwen3-VL with the features for the decoder's first n layers behind: (P / merge², (1 + n) * h).
        """
        counts = [rows * columns for rows, columns in grids]
        padding = self.linear.padded(len(pixels)) - len(pixels)
        hidden = self.linear(self._values(pixels, padding), *self._embed)
        if self._learned is not None:
            hidden.add_(self._interpolated(self._learned, grids, padding))
        rotation = self._rotation(grids, padding)
        layout: Packed | ImageLayout
        if self.varlen is None:
            layout = _image_layout(counts, hidden.device)
        else:
            layout = packed_rows(self.varlen, counts, len(hidden), hidden.device)
        deep: list[Tensor] = []
        for number, layer in enumerate(self._layers):
            hidden = self._attention(layer, layer.norm(hidden), rotation, layout).add_(hidden)
            for part in self.linear.split(hidden, self._mlp_rows):
                part.add_(self._mlp(layer, layer.mlp_norm(part)))
            if number in self._deep:
                deep.append(self._merge(self._deep[number], hidden[: len(pixels)]))
        merged = torch.cat([self._merge(self._merger, hidden[: len(pixels)]), *deep], dim=1)
        return list(torch.split(merged, [count // self._shape.merge**2 for count in counts]))

    def _values(self, pixels: Tensor, padding: int) -> Tensor:
        """Normalised pixels of each patch, in the network's dtype: (P, 3, side, side) -> (P + padding, 3 * side²)."""
        values = pixels.float().mul_(1 / 255).sub_(self._mean).div_(self._std)
        return F.pad(values.flatten(1), (0, 0, 0, padding)).to(self._embed.weight.dtype)

    def _interpolated(self, learned: Tensor, grids: Sequence[Grid], padding: int) -> Tensor:
        """What is added to patches for their places: (P + padding, E), in the network's dtype."""
        taps = [position_taps(grid, self._shape.merge, math.isqrt(len(learned))) for grid in grids]
        parts = (np.pad(np.concatenate(part), ((0, padding), (0, 0))) for part in zip(*taps, strict=True))
        index, shares = (to_device(part, learned.device) for part in parts)
        return F.embedding_bag(index, learned, per_sample_weights=shares, mode="sum").to(self._embed.weight.dtype)

    def _rotation(self, grids: Sequence[Grid], padding: int) -> Tensor:
        """(2, P + padding, 1, F): the first half of the frequencies follows a patch's row, the second its column."""
        places = [patch_positions(rows, columns, self._shape.merge) for rows, columns in grids]
        positions = np.concatenate([*places, np.zeros((2, padding), dtype=np.int64)], axis=1)
        return patch_rotation(self._rotary, positions, self._embed.weight.device)

    def _attention(self, layer: VisionLayer, normed: Tensor, rotation: Tensor, layout: Packed | ImageLayout) -> Tensor:
        heads, _, dim = self.heads
        states = self.linear(normed, *layer.query_key_value).view(-1, 3 * heads, dim)
        query, key = rotate(states[:, : 2 * heads], rotation).chunk(2, dim=1)
        out = _attend(query, key, states[:, 2 * heads :], layout)
        return self.linear(out.flatten(1), *layer.out)

    def _mlp(self, layer: VisionLayer, normed: Tensor) -> Tensor:
        return self.linear(elementwise(layer.activation, self.linear(normed, *layer.up)), *layer.down)

    def _merge(self, merger: Merger, hidden: Tensor) -> Tensor:
        """(P, E) -> (P / merge², h)."""
        count = len(hidden) // self._shape.merge**2
        normed = merger.norm(hidden.view(-1, *merger.norm.normalized_shape)).view(count, -1)
        padded = F.pad(normed, (0, 0, 0, self.linear.padded(count) - count))
        return self.linear(elementwise(F.gelu, self.linear(padded, *merger.first)), *merger.last)[:count]


def _read_layer(block: Any) -> VisionLayer:
    activation = block.mlp.act if hasattr(block.mlp, "act") else block.mlp.act_fn
    return VisionLayer(block.norm1, block.norm2, activation, *_linears(block.attn), *_linears(block.mlp))


def _read_merger(merger: Any) -> Merger:
    return Merger(merger.ln_q if hasattr(merger, "ln_q") else merger.norm, *_linears(merger))


def _linears(module: nn.Module) -> list[LinearWeights]:
    """Weights of a module's two linear layers, in their order."""
    return [LinearWeights.taken(part) for part in module.modules() if isinstance(part, nn.Linear)]


def _channel_statistics(shape: PatchShape, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of a patch: two of (1, 3, 1, 1)."""
    mean, std = (torch.tensor(values, device=device)[None, :, None, None] for values in (shape.mean, shape.std))
    return mean, std


def patch_positions(rows: int, columns: int, merge: int) -> np.ndarray:
    """Row and column of every patch, those of a visual token adjacent: (2, P)."""
    lattice = np.indices((rows, columns)).reshape(2, rows // merge, merge, columns // merge, merge)
    return lattice.transpose(0, 1, 3, 2, 4).reshape(2, -1)


def position_taps(grid: Grid, merge: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each patch the four nearest of side² learned places, and what each counts: both (P, 4).

    Bilinear, corners on corners. Source: transformers, `get_vision_interpolation_indices_and_weights`.
    """
    last = np.maximum(np.array(grid, dtype=np.float32)[:, None] - 1, 1)
    exact = patch_positions(*grid, merge).astype(np.float32) * np.float32(side - 1) / last  # (2, P)
    low = np.floor(exact)
    row, column = np.stack([low, np.minimum(low + 1, side - 1)], axis=-1).astype(np.int64)  # (P, 2)
    down, right = exact - low
    index = row[:, :, None] * side + column[:, None]  # (P, 2, 2)
    shares = np.stack([1 - down, down], axis=-1)[:, :, None] * np.stack([1 - right, right], axis=-1)[:, None]
    return index.reshape(-1, 4), shares.reshape(-1, 4)


def patch_rotation(table: RotaryTable, places: np.ndarray, device: torch.device) -> Tensor:
    """Rotation of patches at rows and columns (2, P): (2, P, 1, F), half of the frequencies by row, half by column."""
    positions, end = to_device(places, device), int(places.max()) + 1
    return torch.cat([table.look_up(axis, [table.size], end) for axis in (positions[:1], positions[1:])], dim=-1)


def _attend(query: Tensor, key: Tensor, value: Tensor, layout: Packed | ImageLayout) -> Tensor:
    """Attention within each image: three of (P, heads, D) -> (P, heads, D)."""
    if isinstance(layout, Packed):
        return layout(query, key, value)[0]
    out = torch.zeros_like(query)
    for rows in layout.alone:
        out[rows] = attend_alone(query[rows], key[rows], value[rows])
    for index in layout.shared:
        q, k, v = (rows[index].transpose(1, 2) for rows in (query, key, value))  # (B, heads, P, D)
        out[index] = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    return out


def _image_layout(counts: Sequence[int], device: torch.device) -> ImageLayout:
    starts = np.cumsum([0, *counts]).tolist()
    alone, groups = [], defaultdict(list)
    for start, count in zip(starts, counts, strict=False):
        if count > SHARED_PATCHES:
            alone.append(slice(start, start + count))
        else:
            groups[count].append(start)
    shared = [np.array(members)[:, None] + np.arange(count)[None] for count, members in groups.items()]
    return ImageLayout(alone, [to_device(index, device) for index in shared])
