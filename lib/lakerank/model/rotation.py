"""Rotary position embeddings, looked up by position, so that the same position is always rotated by the same bits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Positions computed together: few enough for torch never to share them out among threads.
_BLOCK = 256


class RotaryTable:
    """Cosines and sines of every position met so far, for each of a head's frequencies."""

    def __init__(self, frequencies: Tensor, scaling: float, dtype: torch.dtype) -> None:
        self._frequencies = frequencies.float()  # (F,)
        self._scaling = scaling
        self._dtype = dtype
        self._table = self._blocks(0, 1)

    @property
    def size(self) -> int:
        """F, the number of frequencies."""
        return len(self._frequencies)

    def look_up(self, positions: Tensor, sections: Sequence[int], end: int) -> Tensor:
        """positions (A, M), all below `end` -> cosines and sines (2, M, 1, F); section i of F follows row i mod A."""
        if end > self._table.shape[1]:
            first, last = self._table.shape[1] // _BLOCK, -(-end // _BLOCK)
            self._table = torch.cat((self._table, self._blocks(first, last)), dim=1)
        parts, start = [], 0
        for number, size in enumerate(sections):
            parts.append(self._table[:, positions[number % len(positions)], start : start + size])
            start += size
        return torch.cat(parts, dim=-1).unsqueeze(2)

    def _blocks(self, first: int, last: int) -> Tensor:
        """Rows of blocks `first` to `last`, computed block by block: (2, positions, F)."""
        made = []
        for block in range(first, last):
            positions = torch.arange(block * _BLOCK, (block + 1) * _BLOCK, device=self._frequencies.device)
            angles = positions.unsqueeze(-1).float() * self._frequencies
            made.append(torch.stack((angles.cos() * self._scaling, angles.sin() * self._scaling)))
        return torch.cat(made, dim=1).to(self._dtype)


def rotate(states: Tensor, rotation: Tensor) -> Tensor:
    """Apply rotary embeddings to queries or keys: (M, heads, 2F), (2, M, 1, F) -> (M, heads, 2F)."""
    cos, sin = rotation.unbind(0)
    first, second = states.chunk(2, dim=-1)
    turned = torch.empty(states.shape, dtype=states.dtype, device=states.device)
    turned_first, turned_second = turned.chunk(2, dim=-1)
    torch.mul(first, cos, out=turned_first).sub_(second * sin)
    torch.mul(second, cos, out=turned_second).add_(first * sin)
    return turned
