"""Vision encoders of Qwen2-VL and Qwen3-VL over the packed patches of several images, each alone in attention.

Shapes: P patches, E their width, h the decoder's.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from lakerank.model.engine.attention import attend, attend_alone
from lakerank.model.engine.decoder import mlp_rows
from lakerank.model.engine.device import to_device
from lakerank.model.engine.elementwise.fused import choose_ops
from lakerank.model.engine.elementwise.plain import RotaryTable
from lakerank.model.engine.layout import Packed, Varlen, packed_rows
from lakerank.model.engine.linear import BatchInvariantLinear, LinearWeights
from lakerank.model.inputs import Grid
from lakerank.model.preprocess.images import PatchShape

#: An image up to this many patches shares its attention call with others of as many.
SHARED_PATCHES = 256


class VisionLayer(NamedTuple):
    """Weights of a layer, whose norms are before attention and MLP."""

    norm: nn.LayerNorm
    mlp_norm: nn.LayerNorm
    query_key_value: LinearWeights  # (3 E, E)
    out: LinearWeights
    up: LinearWeights
    down: LinearWeights


class Merger(NamedTuple):
    """Makes one visual token of merge² patches; the norm is of each patch or, as wide as all, of them joined."""

    norm: nn.LayerNorm
    first: LinearWeights  # (merge² E, merge² E)
    last: LinearWeights  # (h, merge² E)


#: Rows of the images of each call of attention: of one image, or of B of as many patches each (B, P).
ImageLayout = Sequence[slice | Tensor]


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
        self._layers = [VisionLayer(block.norm1, block.norm2, *_linears(block)) for block in visual.blocks]
        self._merger = _read_merger(visual.merger)
        mergers = map(_read_merger, getattr(visual, "deepstack_merger_list", ()))
        self._deep = dict(zip(getattr(visual, "deepstack_visual_indexes", ()), mergers, strict=True))
        heads = network.config.vision_config.num_heads
        self.heads = (heads, heads, len(self._layers[0].out.weight) // heads)
        self.varlen: Varlen | None = None
        self._mean, self._std = torch.tensor([shape.mean, shape.std], device=summed.device)[:, None, :, None, None]
        rotary = visual.rotary_pos_emb
        self._rotary = RotaryTable(rotary.inv_freq, rotary.attention_scaling, torch.float32)
        self._mlp_rows = mlp_rows(summed.device)
        self._activation: str = network.config.vision_config.hidden_act
        self.ops = choose_ops(summed.device, summed.dtype)
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
        images = torch.tensor([[1, *grid] for grid in grids])  # frames, rows, columns
        padding = self.linear.padded(len(pixels)) - len(pixels)
        hidden = self.linear(self._values(pixels, padding), *self._embed)
        if self._learned is not None:
            hidden.add_(self._interpolated(self._learned, images, padding))
        places = F.pad(get_vision_position_ids(images, self._shape.merge), (0, 0, 0, padding))
        rotation = patch_rotation(self._rotary, places, hidden.device)
        layout: Packed | ImageLayout
        if self.varlen is None:
            layout = _image_layout(counts, hidden.device)
        else:
            layout = packed_rows(self.varlen, counts, len(hidden), hidden.device)
        deep: list[Tensor] = []
        for number, layer in enumerate(self._layers):
            hidden = self._attention(layer, layer.norm(hidden), rotation, layout).add_(hidden)
            for part in self.linear.split(hidden, self._mlp_rows):
                inner = self.ops.activate(self.linear(layer.mlp_norm(part), *layer.up), self._activation)
                part.add_(self.linear(inner, *layer.down))
            if number in self._deep:
                deep.append(self._merge(self._deep[number], hidden[: len(pixels)]))
        merged = torch.cat([self._merge(self._merger, hidden[: len(pixels)]), *deep], dim=1)
        return list(torch.split(merged, [count // self._shape.merge**2 for count in counts]))

    def _values(self, pixels: Tensor, padding: int) -> Tensor:
        """Normalised pixels of each patch, in the network's dtype: (P, 3, side, side) -> (P + padding, 3 * side²)."""
        values = pixels.float().mul_(1 / 255).sub_(self._mean).div_(self._std)
        return F.pad(values.flatten(1), (0, 0, 0, padding)).to(self._embed.weight.dtype)

    def _interpolated(self, learned: Tensor, images: Tensor, padding: int) -> Tensor:
        """What is added to patches for their places: (P + padding, E), in the network's dtype."""
        options = {"align_corners": True, "spatial_merge_size": self._shape.merge}
        taps = get_vision_interpolation_indices_and_weights(images, math.isqrt(len(learned)), **options)
        index, shares = (to_device(F.pad(part, (0, 0, 0, padding)).numpy(), learned.device) for part in taps)
        return F.embedding_bag(index, learned, per_sample_weights=shares, mode="sum").to(self._embed.weight.dtype)

    def _attention(self, layer: VisionLayer, normed: Tensor, rotation: Tensor, layout: Packed | ImageLayout) -> Tensor:
        heads, _, dim = self.heads
        states = self.linear(normed, *layer.query_key_value).view(-1, 3 * heads, dim)
        query, key = self.ops.rotate(states[:, : 2 * heads], rotation).chunk(2, dim=1)
        out = _attend(query, key, states[:, 2 * heads :], layout)
        return self.linear(out.flatten(1), *layer.out)

    def _merge(self, merger: Merger, hidden: Tensor) -> Tensor:
        """(P, E) -> (P / merge², h)."""
        count = len(hidden) // self._shape.merge**2
        normed = merger.norm(hidden.view(-1, *merger.norm.normalized_shape)).view(count, -1)
        padded = F.pad(normed, (0, 0, 0, self.linear.padded(count) - count))
        return self.linear(self.ops.activate(self.linear(padded, *merger.first), "gelu"), *merger.last)[:count]


def _read_merger(merger: Any) -> Merger:
    return Merger(merger.ln_q if hasattr(merger, "ln_q") else merger.norm, *_linears(merger))


def _linears(module: nn.Module) -> list[LinearWeights]:
    """Weights of a module's linear layers, in their order."""
    return [LinearWeights.taken(part) for part in module.modules() if isinstance(part, nn.Linear)]


def patch_rotation(table: RotaryTable, places: Tensor, device: torch.device) -> Tensor:
    """Rotation of patches at rows and columns (P, 2): (2, P, 1, F), half of the frequencies by row, half by column."""
    positions, end = to_device(places.T.numpy(), device), int(places.max()) + 1
    return torch.cat([table.look_up(axis, [table.size], end) for axis in (positions[:1], positions[1:])], dim=-1)


def _attend(query: Tensor, key: Tensor, value: Tensor, layout: Packed | ImageLayout) -> Tensor:
    """Attention within each image: three of (P, heads, D) -> (P, heads, D)."""
    if isinstance(layout, Packed):
        return layout(query, key, value)[0]
    out = torch.zeros_like(query)
    for index in layout:
        if isinstance(index, slice):
            out[index] = attend_alone(query[index], key[index], value[index])
        else:
            q, k, v = (rows[index].transpose(1, 2) for rows in (query, key, value))  # (B, heads, P, D)
            out[index] = attend(q, k, v)[0].transpose(1, 2)
    return out


def _image_layout(counts: Sequence[int], device: torch.device) -> ImageLayout:
    """A large image alone, small ones with others of as many patches."""
    starts = np.cumsum([0, *counts])
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for start, count in zip(starts.tolist(), counts, strict=False):
        groups[count, start if count > SHARED_PATCHES else 0].append(start)
    return [
        slice(first, first + count)
        if count > SHARED_PATCHES
        else to_device(np.array([first, *others])[:, None] + np.arange(count)[None], device)
        for (count, _), (first, *others) in groups.items()
    ]
