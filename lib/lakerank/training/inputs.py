"""The dataset encoded by scoring's preprocessing, and its batches as tensors."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lakerank.limits import Limits
from lakerank.model.inputs import EncodedInput, NamedImage, Patches
from lakerank.model.jina_m0.tokenize import PromptTokenizer, SpecialTokens
from lakerank.model.preprocess.images import PatchShape, cut
from lakerank.model.preprocess.tokenizer import TextTokenizer
from lakerank.training.dataset import Dataset, Table

log = logging.getLogger(__name__)

#: So wide that only training's limits truncate a text.
_LIMITS = Limits(max_query_length=1024)


@dataclass(frozen=True)
class EncodedDataset:
    """A dataset and its rows as encoded inputs: prefixes of documents, suffixes of queries."""

    dataset: Dataset
    documents: Sequence[EncodedInput]
    queries: Sequence[EncodedInput]

    @property
    def patches(self) -> PatchShape:
        """How images are cut and normalised."""
        return self.dataset.images.patches


def encode_dataset(
    dataset: Dataset, tokenizer: Tokenizer, special: SpecialTokens, document_tokens: int, query_tokens: int
) -> EncodedDataset:
    """Encode every row with scoring's prompt, its text truncated to a number of tokens, whatever its image.

    A warning counts the texts that are cut.
    """
    shape = dataset.images.patches
    text, prompt = TextTokenizer(tokenizer), PromptTokenizer(tokenizer, special, _LIMITS, shape.merge)
    # Of an image the prompt needs the grid alone; pixels are cut in `image_batches`, for they may be augmented first.
    grids = [(pixels.shape[0] // shape.side, pixels.shape[1] // shape.side) for pixels in dataset.images.pixels]
    images = [Patches(np.empty((0, 3, shape.side, shape.side), np.uint8), grid) for grid in grids]

    def shorten(whole: str, limit: int) -> tuple[str, bool]:
        kept, is_cut = text.cut(whole, limit)
        return (kept, is_cut) if kept.strip() or not whole.strip() else text.cut(whole.strip(), limit)

    def encoded(
        table: Table, build: Callable[[str | None, Iterable[NamedImage]], EncodedInput], limit: int
    ) -> list[EncodedInput]:
        texts = [shorten(whole or "", limit) for whole in table.texts]
        if count := sum(is_cut for _, is_cut in texts):
            log.warning("%d of %d texts are cut after %d tokens", count, len(texts), limit)
        shown = [[("", images[index])] if index >= 0 else [] for index in table.images]
        return [build(kept, image) for (kept, _), image in zip(texts, shown, strict=True)]

    return EncodedDataset(
        dataset,
        documents=encoded(dataset.documents, prompt.document, document_tokens),
        queries=encoded(dataset.queries, prompt.query, query_tokens),
    )


@dataclass(frozen=True)
class PaddedInputs:
    """Right-padded inputs: under a causal mask tokens after a sequence never reach it."""

    ids: Tensor  # (B, L) int64
    positions: Tensor  # (3, B, L) int64
    lengths: Tensor  # (B,) int64
    ends: Tensor  # (B,) int64, the position of whatever follows

    def to(self, device: torch.device) -> PaddedInputs:
        """The same on a device."""
        return PaddedInputs(*(value.to(device) for value in (self.ids, self.positions, self.lengths, self.ends)))


def pad(inputs: Sequence[EncodedInput]) -> PaddedInputs:
    """Join encoded inputs, shorter ones filled up with token 0."""
    ids = [torch.from_numpy(np.asarray(each.token_ids, dtype=np.int64)) for each in inputs]
    positions = [torch.from_numpy(np.asarray(each.positions, dtype=np.int64).T) for each in inputs]  # (L, 3)
    return PaddedInputs(
        ids=pad_sequence(ids, batch_first=True),
        positions=pad_sequence(positions, batch_first=True).permute(2, 0, 1),
        lengths=torch.tensor([len(each) for each in ids]),
        ends=torch.tensor([each.end for each in inputs]),
    )


@dataclass(frozen=True)
class ImageBatch:
    """Equally large images. `places`: the position of each in the request; `grid`: rows and columns of patches."""

    places: list[int]
    values: Tensor  # (N, P, 3 · side²) float32, normalised
    grid: tuple[int, int]


def image_batches(data: EncodedDataset, images: Sequence[int], generator: torch.Generator | None) -> list[ImageBatch]:
    """Images as normalised patches, those of one size together; augmented where there is a generator."""
    by_size: dict[tuple[int, ...], list[int]] = defaultdict(list)
    pixels = [data.dataset.images.pixels[image] for image in images]
    for place, each in enumerate(pixels):
        by_size[each.shape].append(place)
    mean, std = (torch.tensor(channel).view(3, 1, 1) for channel in (data.patches.mean, data.patches.std))
    batches = []
    for places in by_size.values():
        values = torch.from_numpy(np.stack([pixels[place] for place in places])).float() * (1 / 255)
        if generator is not None:
            values = augment(values.permute(0, 3, 1, 2), generator).permute(0, 2, 3, 1)
        patches = [cut(each, data.patches) for each in values.numpy()]
        stacked = torch.from_numpy(np.stack([each.pixels for each in patches]))  # (N, P, 3, side, side)
        batches.append(ImageBatch(places, ((stacked - mean) / std).flatten(2), patches[0].grid))
    return batches


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Light, random changes, so that a network learns what is drawn rather than who drew it: (N, 3, H, W) in [0, 1].

    Move, scale, tilt, cut, tint, shade and blur images on white. Nothing is mirrored: an arrow or a letter would come
    to mean something else.
    """
    count = len(images)
    ink = F.grid_sample(1 - images, _grid(images, generator), padding_mode="zeros", align_corners=False)
    ink = torch.where(_likely(count, 0.15, generator), F.avg_pool2d(ink, 3, 1, 1), ink)
    ink = ink * _kept(count, ink.shape[2:], generator)
    changed = _tint(1 - ink, generator)
    shade = _uniform((count, 1, 3, 3), 0.75, 1.2, generator)
    shade = F.interpolate(shade, size=images.shape[2:], mode="bilinear", align_corners=True)
    covered = (ink.amax(1, keepdim=True) > 0.02).float()
    shaded = changed * (1 + (shade - 1) * covered)
    return torch.where(_likely(count, 0.5, generator), shaded, changed).clamp(0, 1)


def _grid(images: Tensor, generator: torch.Generator) -> Tensor:
    """Sampling grid of a small random rotation, scale, stretch and shift."""
    count = len(images)
    angle = _uniform((count,), -0.3, 0.3, generator)
    scale = _uniform((count,), 0.85, 1.35, generator)
    stretch = _uniform((count,), 0.85, 1.18, generator)
    shift = _uniform((count, 2), -0.1, 0.1, generator)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = torch.stack([cos * stretch, -sin, shift[:, 0], sin * stretch, cos, shift[:, 1]], dim=1)
    return F.affine_grid(rows.view(count, 2, 3), list(images.shape), align_corners=False)


def _kept(count: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """(N, 1, H, W): 0 in a square that a quarter of the images lose (DeVries and Taylor 2017), 1 elsewhere."""
    side = 0.3
    top, left = (_uniform((count, 1, 1, 1), 0.0, 1.0 - side, generator) for _ in range(2))
    rows, columns = (torch.linspace(0, 1, length) for length in shape)
    down, across = rows.view(1, 1, -1, 1) - top, columns.view(1, 1, 1, -1) - left
    inside = (down >= 0) & (down < side) & (across >= 0) & (across < side)
    return (~(inside & _likely(count, 0.25, generator))).float()


def _tint(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mix the colour channels a little (a fifth of the images: to grey), change the contrast, keep white."""
    count = len(images)
    mixing = torch.eye(3) + torch.randn(count, 3, 3, generator=generator) * 0.18
    mixing = torch.where(_likely(count, 0.2, generator).view(-1, 1, 1), torch.full((3, 3), 1 / 3), mixing)
    mixing = mixing / mixing.sum(2, keepdim=True)  # rows add up to 1: white stays white
    mixed = torch.einsum("nij,njhw->nihw", mixing, images)
    contrast = _uniform((count, 1, 1, 1), 0.7, 1.3, generator)
    return (1 - (1 - mixed) * contrast).clamp(0, 1)


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


def _likely(count: int, probability: float, generator: torch.Generator) -> Tensor:
    """(N, 1, 1, 1), true with a probability."""
    return torch.rand((count, 1, 1, 1), generator=generator) < probability
