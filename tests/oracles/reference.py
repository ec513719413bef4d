"""The published scoring loop, whole pair by whole pair: the oracle that the engine is tested against, and its baseline.

It shares the prompt's strings with the engine and nothing else: joint tokenisation, transformers' image processor,
transformers' own forward and positions, left padding, batches in input order.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from tokenizers import Tokenizer
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from lakerank.limits import Limits
from lakerank.model.checkpoint import locate
from lakerank.model.jina_m0.config import DOCUMENT, QUERY, read_settings
from lakerank.model.jina_m0.tokenize import read_special_tokens
from lakerank.model.jina_m0.weights import JinaVLForRanking, load_network
from lakerank.records import Document, Query

#: Pairs the published loop puts into one forward.
BATCH_SIZE = 8


class PublishedLoop:
    """Scores pairs as the published code does."""

    def __init__(
        self, path: str | Path, *, dtype: str = "float32", device: str = "cpu", limits: Limits | None = None
    ) -> None:
        folder = locate(str(path))
        settings = read_settings(folder, dtype)
        self._limits = limits or Limits()
        self._special = read_special_tokens(folder, settings)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.encode_special_tokens = True
        self._network: JinaVLForRanking = load_network(folder, settings, device)
        self._head = self._network.score.float()
        self._device = torch.device(device)
        shape = settings.patches
        self._merge = shape.merge
        self._images = Qwen2VLImageProcessorPil(
            size={"shortest_edge": self._limits.min_pixels, "longest_edge": self._limits.max_pixels},
            patch_size=shape.side,
            merge_size=shape.merge,
            temporal_patch_size=shape.frames,
            image_mean=list(shape.mean),
            image_std=list(shape.std),
        )

    @torch.inference_mode()
    def logits(self, pairs: Sequence[tuple[Query, Document]], batch_size: int = BATCH_SIZE) -> np.ndarray:
        """Raw float32 logits (P,) of pairs, in order."""
        parts = [self._batch(pairs[first : first + batch_size]) for first in range(0, len(pairs), batch_size)]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)

    def _batch(self, pairs: Sequence[tuple[Query, Document]]) -> np.ndarray:
        rows = [self._row(query, document) for query, document in pairs]
        longest = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([[0] * (longest - len(row)) + row for row, _ in rows], device=self._device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row, _ in rows], device=self._device)
        images = [image for _, row_images in rows for image in row_images]
        model = self._network.model
        embeds = model.language_model.embed_tokens(ids)
        if images:
            values = torch.cat([values for values, _ in images])
            grids = torch.cat([grid for _, grid in images])
            visual = model.visual(values.to(embeds.device, embeds.dtype), grid_thw=grids.to(embeds.device))
            places = (ids == self._special.image).unsqueeze(-1).expand_as(embeds)
            embeds = embeds.masked_scatter(places, visual.pooler_output.to(embeds.dtype))
        positions = self._positions(rows, longest).to(self._device)
        hidden = model.language_model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
        )
        head = self._network.score.float()
        logits: Tensor = head(hidden.last_hidden_state[:, -1].float()).squeeze(-1)
        return logits.cpu().numpy()

    def _row(self, query: Query, document: Document) -> tuple[list[int], list[tuple[Tensor, Tensor]]]:
        """A pair's token ids and its images, document first."""
        images = [self._image(image) for item in (document, query) for image in item.images]
        grids = iter(images)
        special = self._special
        longest_text = max(self._limits.max_length - self._limits.max_query_length, self._limits.max_query_length)
        body = self._shortened(document.text or "", longest_text)
        pieces: list[str | int] = [DOCUMENT.prefix]
        for item, text in ((document, body + DOCUMENT.suffix + QUERY.prefix), (query, query.text or "")):
            for _ in item.images:
                count = int(next(grids)[1].prod()) // self._merge**2
                pieces += [special.vision_start, *[special.image] * count, special.vision_end]
            pieces.append(text)
        ids = self._encode_pieces(pieces)
        return [*ids[: self._limits.max_length - 1], special.score], images

    def _encode_pieces(self, pieces: Sequence[str | int]) -> list[int]:
        """Text between special tokens is encoded in one piece, as a tokenizer that knows them does."""
        ids: list[int] = []
        text = ""
        for piece in (*pieces, -1):
            if isinstance(piece, str):
                text += piece
                continue
            ids += self._encode(text)
            text = ""
            ids.append(piece)
        return ids[:-1]

    def _shortened(self, text: str, most: int) -> str:
        ids = self._encode(text)
        return text if len(ids) <= most else str(self._tokenizer.decode(ids[:most], skip_special_tokens=False))

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids) if text else []

    def _image(self, data: bytes) -> tuple[Tensor, Tensor]:
        processed: Any = self._images(open_upright(data), return_tensors="pt")
        return processed["pixel_values"], processed["image_grid_thw"]

    def _positions(self, rows: Sequence[tuple[list[int], list[tuple[Tensor, Tensor]]]], longest: int) -> Tensor:
        """M-RoPE positions (3, B, longest); padding on the left stands at 1, as transformers leaves it for text."""
        positions = torch.ones(3, len(rows), longest, dtype=torch.long)
        for place, (ids, images) in enumerate(rows):
            grids = iter(grid[0].tolist() for _, grid in images)
            steps: list[Tensor] = []
            following, index = 0, 0
            while index < len(ids):
                if ids[index] != self._special.image:
                    steps.append(torch.full((3, 1), following))
                    following, index = following + 1, index + 1
                    continue
                _, rows_of_patches, columns_of_patches = next(grids)
                height, width = rows_of_patches // self._merge, columns_of_patches // self._merge
                lattice = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
                steps.append(torch.stack([torch.zeros_like(lattice[0]), *lattice]).flatten(1) + following)
                following, index = following + max(height, width), index + height * width
            positions[:, place, longest - len(ids) :] = torch.cat(steps, dim=1)
        return positions


def open_upright(data: bytes) -> Image.Image:
    """An encoded image, upright, in RGB, on white."""
    image: Image.Image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")


def normalised(patches: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Values of 8-bit patches (P, 3, side, side) as Qwen2-VL's image processor computes them, in float32."""
    values = (np.arange(256) * (1 / 255)).astype(np.float32)
    table = (values - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]  # (3, 256)
    values_of_patches: np.ndarray = table[np.arange(3)[None, :, None, None], patches]
    return values_of_patches


def reference_logits(
    checkpoint: str | Path, pairs: Sequence[tuple[Query, Document]], batch_size: int = BATCH_SIZE
) -> np.ndarray:
    """Raw float32 logits (P,) of pairs by the published loop, on a CPU in float32."""
    return PublishedLoop(checkpoint).logits(pairs, batch_size)
