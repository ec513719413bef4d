"""Norms, rotary position embeddings and activations as torch has them.

Rotations come from a table by position: a position is rotated by the same bits in every batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, groupby, pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.activations import ACT2FN

from lakerank.model.engine.linear import elementwise

#: Text models whose frequencies are divided among time, height and width, and how where config.json does not say.
_MROPE_SECTIONS = {"qwen2_vl_text": [16, 24, 24], "qwen3_vl_text": [24, 20, 20]}

#: Those of transformers' activations that take fresh memory more than once, with it once, by the same operators.
_ACTIVATIONS = {"quick_gelu": lambda rows: (rows * 1.702).sigmoid_().mul_(rows)}

#: Positions computed together: few enough for torch never to divide them among threads.
_POSITIONS_AT_ONCE = 256


class RotaryTable:
    """Rotary position embeddings, F frequencies: a position has the same cosines and sines in every batch.

    The table grows with the largest position.
    """

    def __init__(self, frequencies: Tensor, scaling: float, dtype: torch.dtype) -> None:
        self._frequencies, self.size = frequencies.float(), len(frequencies)  # (F,), F
        self._scaling = scaling
        self._dtype = dtype
        self._table = self._blocks(0, 1)

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
    if model_type != "qwen3_vl_text":
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
    cos, sin = rotation.unbind(0)
    first, second = states.chunk(2, dim=-1)
    if states.requires_grad:  # `out` takes no gradients
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    rotated = torch.empty(states.shape, dtype=states.dtype, device=states.device)
    rotated_first, rotated_second = rotated.chunk(2, dim=-1)
    torch.addcmul(first * cos, second, sin, value=-1, out=rotated_first)
    torch.addcmul(second * cos, first, sin, out=rotated_second)
    return rotated


class RMSNorm(NamedTuple):
    """Root mean square norm: scale (h,), and what is added to the mean of squares."""

    weight: Tensor
    epsilon: float

    @classmethod
    def of(cls, module: Any) -> RMSNorm:
        """transformers'. Gemma's stored weights are less one, and multiply in float32."""
        if hasattr(module, "eps"):
            return cls(1 + module.weight.float(), float(module.eps))
        return cls(module.weight, float(module.variance_epsilon))


def norm(rows: Tensor, of: RMSNorm, added: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """Rows (M, h) or heads (M, H, h) normed, into `out` if given; `added` is added to the rows, in place, before.

    The mean of squares in float32, with fewer passes over memory than transformers' own.
    """
    rows = rows if added is None else rows.add_(added)
    if rows.is_cpu or rows.dtype != of.weight.dtype:
        wide = rows.float()
        size: Tensor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = (size.square_().div_(rows.shape[-1]) + of.epsilon).rsqrt_()
        normed = (wide * scale).to(of.weight.dtype).mul_(of.weight).to(rows.dtype)
    else:
        normed = F.rms_norm(rows, rows.shape[-1:], of.weight, of.epsilon)
    return normed if out is None else out.copy_(normed)


def activate(rows: Tensor, name: str, gated: bool = False) -> Tensor:
    """transformers' activation of a name, perhaps in place: (M, N) -> (M, N), M even.

    `gated`: that of the first half of the columns, times the second: (M, 2 N) -> (M, N).
    """
    activated, *factors = rows.chunk(1 + gated, dim=-1)
    activated = elementwise(_ACTIVATIONS.get(name) or ACT2FN[name], activated)
    return activated.mul_(factors[0]) if gated else activated
