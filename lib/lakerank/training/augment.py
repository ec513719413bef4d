"""Light, random changes of pictures, so that a network learns what is drawn rather than who drew it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Move, scale, tilt, cut, tint, shade and blur pictures on white: (N, 3, H, W) in [0, 1] -> the same.

    Nothing is mirrored: an arrow or a letter would come to mean something else.
    """
    count = len(pictures)
    ink = F.grid_sample(1 - pictures, _grid(pictures, generator), padding_mode="zeros", align_corners=False)
    ink = torch.where(_chance(count, 0.15, generator), F.avg_pool2d(ink, 3, 1, 1), ink)
    ink = ink * _kept(count, ink.shape[2:], generator)
    changed = _tint(1 - ink, generator)
    shade = _uniform((count, 1, 3, 3), 0.75, 1.2, generator)
    shade = F.interpolate(shade, size=pictures.shape[2:], mode="bilinear", align_corners=True)
    covered = (ink.amax(1, keepdim=True) > 0.02).float()
    shaded = changed * (1 + (shade - 1) * covered)
    return torch.where(_chance(count, 0.5, generator), shaded, changed).clamp(0, 1)


def _grid(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Sampling grid of a small random rotation, scale, stretch and shift."""
    count = len(pictures)
    angle = _uniform((count,), -0.3, 0.3, generator)
    scale = _uniform((count,), 0.85, 1.35, generator)
    stretch = _uniform((count,), 0.85, 1.18, generator)
    shift = _uniform((count, 2), -0.1, 0.1, generator)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = torch.stack([cos * stretch, -sin, shift[:, 0], sin * stretch, cos, shift[:, 1]], dim=1)
    return F.affine_grid(rows.view(count, 2, 3), list(pictures.shape), align_corners=False)


def _kept(count: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """(N, 1, H, W): 0 in a square that a quarter of the pictures lose (DeVries and Taylor 2017), 1 elsewhere."""
    side = 0.3
    top, left = (_uniform((count, 1, 1, 1), 0.0, 1.0 - side, generator) for _ in range(2))
    rows, columns = (torch.linspace(0, 1, length) for length in shape)
    down, across = rows.view(1, 1, -1, 1) - top, columns.view(1, 1, 1, -1) - left
    inside = (down >= 0) & (down < side) & (across >= 0) & (across < side)
    return (~(inside & _chance(count, 0.25, generator))).float()


def _tint(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Mix the colour channels a little (a fifth of the pictures: to grey), change the contrast, keep white."""
    count = len(pictures)
    mixing = torch.eye(3) + torch.randn(count, 3, 3, generator=generator) * 0.18
    mixing = torch.where(_chance(count, 0.2, generator).view(-1, 1, 1), torch.full((3, 3), 1 / 3), mixing)
    mixing = mixing / mixing.sum(2, keepdim=True)  # rows add up to 1: white stays white
    mixed = torch.einsum("nij,njhw->nihw", mixing, pictures)
    contrast = _uniform((count, 1, 1, 1), 0.7, 1.3, generator)
    return (1 - (1 - mixed) * contrast).clamp(0, 1)


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


def _chance(count: int, probability: float, generator: torch.Generator) -> Tensor:
    """(N, 1, 1, 1), true with a probability."""
    return torch.rand((count, 1, 1, 1), generator=generator) < probability
