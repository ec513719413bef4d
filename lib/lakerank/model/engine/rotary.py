"""Rotary position embeddings from a table by position: a position is rotated by the same bits in every batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, groupby, pairwise
from typing import Any

import torch
from torch import Tensor

#: Text models whose frequencies are divided among time, height and width, and how where config.json does not say.
_MROPE_SECTIONS = {"qwen2_vl_text": [16, 24, 24], "qwen3_vl_text": [24, 20, 20]}

#: The one whose sections are interleaved.
_INTERLEAVED = "qwen3_vl_text"

#: Positions computed together: few enough for torch never to divide them among threads.
_POSITIONS_AT_ONCE = 256


class RotaryTable:
    """Rotary position embeddings, F frequencies: a position has the same cosines and sines in every batch.

    The table grows with the largest position.
    """

    def __init__(self, frequencies: Tensor, scaling: float, dtype: torch.dtype) -> None:
        self._frequencies = frequencies.float()  # (F,)
        self._scaling = scaling
        self._dtype = dtype
        self._table = self._blocks(0, 1)

    @property
    def size(self) -> int:
        """F."""
        return len(self._frequencies)

    def look_up(self, positions: Tensor, sections: Sequence[int], end: int) -> Tensor:
        """positions (A, M), all below `end` -> cosines and sines (2, M, 1, F); section i of F follows row i mod A."""
        if end > self._table.shape[1]:
            first, last = self._table.shape[1] // _POSITIONS_AT_ONCE, -(-end // _POSITIONS_AT_ONCE)
            self._table = torch.cat((self._table, self._blocks(first, last)), dim=1)
        spans = enumerate(pairwise([0, *accumulate(sections)]))
        parts = [self._table[:, positions[number % len(positions)], start:stop] for number, (start, stop) in spans]
        return torch.cat(parts, dim=-1).unsqueeze(2)

    def _blocks(self, first: int, last: int) -> Tensor:
        """Cosines and sines of blocks `first` to `last` of positions, block by block: (2, positions, F)."""
        blocks = []
        for start in range(first * _POSITIONS_AT_ONCE, last * _POSITIONS_AT_ONCE, _POSITIONS_AT_ONCE):
            positions = torch.arange(start, start + _POSITIONS_AT_ONCE, device=self._frequencies.device)
            angles = positions.unsqueeze(-1).float() * self._frequencies
            blocks.append(torch.stack((angles.cos() * self._scaling, angles.sin() * self._scaling)))
        return torch.cat(blocks, dim=1).to(self._dtype)


def rotary_sections(model_type: str, rope: Mapping[str, Any], size: int) -> list[int]:
    """How many of a head's `size` frequencies follow time, height, width, time, … in turn, as `look_up` takes them.

    `rope` is the text model's settings of rotary embeddings. Where a model has no sections, all frequencies follow the
    one position of a text token. Qwen3-VL's are interleaved: height has every third from the second on, width from the
    third on, as many as their sections say; time has the rest. Source: transformers, Qwen3VLTextRotaryEmbedding.
    """
    sections = rope.get("mrope_section", _MROPE_SECTIONS.get(model_type))
    if sections is None:
        return [size]
    if model_type != _INTERLEAVED:
        return list(sections)
    axes = [place % 3 if place < 3 * sections[place % 3] else 0 for place in range(size)]
    interleaved: list[int] = []
    for axis, places in groupby(axes):
        interleaved += [0] * ((axis - len(interleaved)) % 3)
        interleaved.append(len(list(places)))
    return interleaved


def rotate(states: Tensor, rotation: Tensor) -> Tensor:
    """Apply rotary embeddings to queries or keys: (M, heads, 2F), (2, M, 1, F) -> (M, heads, 2F).

    In the rotation's dtype, whose result is rounded to that of the states.
    """
    if states.device.type == "cpu" and rotation.dtype != states.dtype:
        return rotate(states.to(rotation.dtype), rotation).to(states.dtype)
    cos, sin = rotation.unbind(0)
    first, second = states.chunk(2, dim=-1)
    if states.requires_grad:  # `out` takes no gradients
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    rotated = torch.empty(states.shape, dtype=states.dtype, device=states.device)
    rotated_first, rotated_second = rotated.chunk(2, dim=-1)
    if states.device.type != "cpu":  # fewer passes over memory, and kernels
        torch.addcmul(first * cos, second, sin, value=-1, out=rotated_first)
        torch.addcmul(second * cos, first, sin, out=rotated_second)
        return rotated
    torch.mul(first, cos, out=rotated_first).sub_(second * sin)
    torch.mul(second, cos, out=rotated_second).add_(first * sin)
    return rotated
