"""Documents and queries as the model reads them: token ids and M-RoPE positions, padded into batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a pair: a document's prefix, or a query's suffix with its score token.

    `positions` are M-RoPE positions (3, L) counted from 0; the other side continues at `next_position`. `body` is the
    span of the row's own tokens, between those of the prompt.
    """

    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    next_position: int
    image: int = -1
    body: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Sides:
    """A right-padded batch of sides, with the images in it, in the order of their rows."""

    ids: Tensor  # (B, L) int64
    positions: Tensor  # (3, B, L) int64
    lengths: Tensor  # (B,) int64
    next_positions: Tensor  # (B,) int64
    images: tuple[int, ...]
    bodies: Tensor  # (B, 2) int64

    def to(self, device: torch.device) -> Sides:
        """The same on a device."""
        return Sides(
            self.ids.to(device), self.positions.to(device), self.lengths.to(device), self.next_positions.to(device),
            self.images, self.bodies.to(device),
        )  # fmt: skip


def mrope_positions(
    ids: npt.NDArray[np.int64], image_pad: int, grid: tuple[int, int]
) -> tuple[npt.NDArray[np.int64], int]:
    """Positions (3, L) of a sequence with at most one image of `grid` merged rows × columns, and the one after it.

    Qwen2-VL's rule: text counts up on all three axes; an image's tokens share one time step and spread over height and
    width; what follows starts after the largest position so far.
    """
    length = len(ids)
    where = np.flatnonzero(ids == image_pad)
    if not len(where):
        return np.broadcast_to(np.arange(length), (3, length)).copy(), length
    rows, columns = grid
    start, end = int(where[0]), int(where[-1]) + 1
    after = start + max(rows, columns)
    height, width = np.divmod(np.arange(rows * columns), columns)
    visual = np.stack([np.zeros(rows * columns, dtype=np.int64), height, width]) + start
    text = np.arange(length - end) + after
    positions = np.concatenate(
        [np.broadcast_to(np.arange(start), (3, start)), visual, np.broadcast_to(text, (3, length - end))], axis=1
    )
    return positions.astype(np.int64), after + length - end


def pad(sides: Sequence[Side], padding_id: int) -> Sides:
    """Right-pad: under a causal mask what stands after a sequence never reaches it."""
    longest = max(len(side.ids) for side in sides)
    ids = np.full((len(sides), longest), padding_id, dtype=np.int64)
    positions = np.zeros((3, len(sides), longest), dtype=np.int64)
    for row, side in enumerate(sides):
        ids[row, : len(side.ids)] = side.ids
        positions[:, row, : len(side.ids)] = side.positions
    return Sides(
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(positions),
        lengths=torch.tensor([len(side.ids) for side in sides]),
        next_positions=torch.tensor([side.next_position for side in sides]),
        images=tuple(side.image for side in sides if side.image >= 0),
        bodies=torch.tensor([side.body for side in sides]),
    )
