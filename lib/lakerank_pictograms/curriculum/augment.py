"""Random changes of pictograms, drawn from torch's own generator, which each step seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor


def augment_all(pixels: Sequence[npt.NDArray[np.float32]]) -> list[npt.NDArray[np.float32]]:
    """Changed images, (height, width, 3) in [0, 1]; those of one size are changed together."""
    by_size: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for place, image in enumerate(pixels):
        by_size[image.shape].append(place)
    changed = list(pixels)
    for places in by_size.values():
        images = torch.from_numpy(np.stack([pixels[place] for place in places])).permute(0, 3, 1, 2)
        for place, image in zip(places, augment(images).permute(0, 2, 3, 1).numpy(), strict=True):
            changed[place] = image
    return changed


def augment(images: Tensor) -> Tensor:
    """Light, random changes, so that a network learns what is drawn rather than who drew it: (N, 3, H, W) in [0, 1].

    Move, scale, tilt, cut, tint, shade and blur images on white. Nothing is mirrored: an arrow or a letter would come
    to mean something else.
    """
    count = len(images)
    ink = F.grid_sample(1 - images, _grid(images), padding_mode="zeros", align_corners=False)
    ink = torch.where(_likely(count, 0.15), F.avg_pool2d(ink, 3, 1, 1), ink)
    ink = ink * _kept(count, ink.shape[2:])
    changed = _tint(1 - ink)
    shade = _uniform((count, 1, 3, 3), 0.75, 1.2)
    shade = F.interpolate(shade, size=images.shape[2:], mode="bilinear", align_corners=True)
    covered = (ink.amax(1, keepdim=True) > 0.02).float()
    shaded = changed * (1 + (shade - 1) * covered)
    return torch.where(_likely(count, 0.5), shaded, changed).clamp(0, 1)


def _grid(images: Tensor) -> Tensor:
    """Sampling grid of a small random rotation, scale, stretch and shift."""
    count = len(images)
    angle = _uniform((count,), -0.3, 0.3)
    scale = _uniform((count,), 0.85, 1.35)
    stretch = _uniform((count,), 0.85, 1.18)
    shift = _uniform((count, 2), -0.1, 0.1)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = torch.stack([cos * stretch, -sin, shift[:, 0], sin * stretch, cos, shift[:, 1]], dim=1)
    return F.affine_grid(rows.view(count, 2, 3), list(images.shape), align_corners=False)


def _kept(count: int, shape: Sequence[int]) -> Tensor:
    """(N, 1, H, W): 0 in a square that a quarter of the images lose (DeVries and Taylor 2017), 1 elsewhere."""
    side = 0.3
    top, left = (_uniform((count, 1, 1, 1), 0.0, 1.0 - side) for _ in range(2))
    rows, columns = (torch.linspace(0, 1, length) for length in shape)
    down, across = rows.view(1, 1, -1, 1) - top, columns.view(1, 1, 1, -1) - left
    inside = (down >= 0) & (down < side) & (across >= 0) & (across < side)
    return (~(inside & _likely(count, 0.25))).float()


def _tint(images: Tensor) -> Tensor:
    """Mix the colour channels a little (a fifth of the images: to grey), change the contrast, keep white."""
    count = len(images)
    mixing = torch.eye(3) + torch.randn(count, 3, 3) * 0.18
    mixing = torch.where(_likely(count, 0.2).view(-1, 1, 1), torch.full((3, 3), 1 / 3), mixing)
    mixing = mixing / mixing.sum(2, keepdim=True)  # rows add up to 1: white stays white
    mixed = torch.einsum("nij,njhw->nihw", mixing, images)
    contrast = _uniform((count, 1, 1, 1), 0.7, 1.3)
    return (1 - (1 - mixed) * contrast).clamp(0, 1)


def _uniform(shape: tuple[int, ...], low: float, high: float) -> Tensor:
    return torch.rand(shape) * (high - low) + low


def _likely(count: int, probability: float) -> Tensor:
    """(N, 1, 1, 1), true with a probability."""
    return torch.rand((count, 1, 1, 1)) < probability
