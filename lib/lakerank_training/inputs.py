"""The dataset encoded by scoring's preprocessing, and its batches as tensors."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lakerank.limits import Limits
from lakerank.model.inputs import EncodedInput, Grid, NamedImage, Patches
from lakerank.model.jina_m0.tokenize import PromptTokenizer, SpecialTokens
from lakerank.model.preprocess.images import PatchShape, cut
from lakerank.model.preprocess.tokenizer import TextTokenizer
from lakerank_training.dataset import Dataset, Table

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
    grid: Grid


#: Random changes of images of any sizes, (height, width, 3) in [0, 1].
Augment = Callable[[Sequence[npt.NDArray[np.float32]]], Sequence[npt.NDArray[np.float32]]]


def image_batches(data: EncodedDataset, images: Sequence[int], augment: Augment | None = None) -> list[ImageBatch]:
    """Images as normalised patches, those of one size together; changed first where there is a function for it."""
    pixels = [data.dataset.images.pixels[image] * np.float32(1 / 255) for image in images]
    patches = [cut(each, data.patches) for each in (augment(pixels) if augment else pixels)]
    mean, std = (torch.tensor(channel).view(3, 1, 1) for channel in (data.patches.mean, data.patches.std))
    places: dict[Grid, list[int]] = defaultdict(list)
    for place, each in enumerate(patches):
        places[each.grid].append(place)
    stacked = {grid: torch.from_numpy(np.stack([patches[at].pixels for at in those])) for grid, those in places.items()}
    return [ImageBatch(places[grid], ((values - mean) / std).flatten(2), grid) for grid, values in stacked.items()]
