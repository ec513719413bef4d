"""Loads generative rerankers: language models prompted for one of two words.

They are the document-major engine with another prompt and score head (`ScoreHead.of_tokens`). MonoQwen2-VL reads the
document first, so that a document's image and prefix are computed once for all its queries. Qwen3-VL-Reranker and
Qwen3-Reranker read the query first: pairs share what is before both and the vision encoder's work, and everything after
is computed pair by pair.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lakerank.model.checkpoint import read_json
from lakerank.model.engine.decoder import PackedDecoder, ScoreHead
from lakerank.model.engine.engine import DocumentMajorEngine
from lakerank.model.engine.linear import BatchInvariantLinear, LinearWeights
from lakerank.model.engine.reranker import BatchedReranker
from lakerank.model.engine.vision import PackedVision, Vision
from lakerank.model.generative.config import read_patch_shape
from lakerank.model.generative.prompt import PROMPTS
from lakerank.model.generative.tokenize import ChatTokenizer, check_vocabulary
from lakerank.model.generative.weights import load_language_model
from lakerank.model.inputs import Grid
from lakerank.model.preprocess.images import PatchShape
from lakerank.model.preprocess.pipeline import Preprocessor
from lakerank.model.registry import LoadOptions

#: Rows of a pair that attend at once where it is computed whole, document and all.
_QUERY_BLOCK = 1024


def load(options: LoadOptions) -> BatchedReranker:
    """The checkpoint on its device, its adapter, if any, merged into it; prompted as its family is.

    Raises:
        CheckpointError: weights, adapter or tokenizer do not fit config.json.
    """
    folder, prompt = options.folder, PROMPTS[options.family]
    shape = read_patch_shape(folder, prompt)
    tokenizer = ChatTokenizer(
        folder / "tokenizer.json", read_json(folder / "config.json"), prompt, options.limits, shape.merge
    )
    network, head = load_language_model(
        folder, getattr(torch, options.dtype), torch.device(options.device), options.adapter
    )
    check_vocabulary(tokenizer, len(head), str(folder))
    engine = DocumentMajorEngine(
        PackedDecoder(network, ScoreHead.of_tokens(head[tokenizer.tokens.yes], head[tokenizer.tokens.no])),
        _vision(network, shape),
        query_block=_QUERY_BLOCK,
        reproducible=options.reproducible,
    )
    preprocessor = Preprocessor(
        tokenizer,
        options.limits,
        shape if prompt.document.image else None,
        arrange=tokenizer.arrange,
        threads=options.host_threads,
    )
    return BatchedReranker(engine, preprocessor, fingerprint=options.fingerprint, logit_bias=options.logit_bias)


def _vision(network: Any, shape: PatchShape) -> Vision | None:
    """The vision encoder of each kind of network, if it has one."""
    if network.config.model_type == "qwen2_vl":
        return PackedVision(network, shape)
    return ImageByImage(network.model.visual, shape) if hasattr(network.model, "visual") else None


class ImageByImage:
    """Visual tokens of images, each by itself: what its tokens are depends on no other. To be used by one thread."""

    def __init__(self, visual: Any, shape: PatchShape) -> None:
        self._visual = visual
        self._shape = shape
        device = visual.pos_embed.weight.device
        self._mean = torch.tensor(shape.mean, device=device)[None, :, None, None]
        self._std = torch.tensor(shape.std, device=device)[None, :, None, None]
        self.linear = BatchInvariantLinear()

    def weights(self) -> Iterator[LinearWeights]:
        """None: images share no linear layer."""
        yield from ()

    def tokens(self, pixels: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        """Of each image its visual tokens, with the features for the decoder's first n layers: (V, (1 + n) * h)."""
        counts = [rows * columns for rows, columns in grids]
        parts = zip(torch.split(pixels, counts), grids, strict=True)
        return [self._one(part, grid) for part, grid in parts]

    def _one(self, pixels: Tensor, grid: Grid) -> Tensor:
        values = pixels.float().mul_(1 / 255).sub_(self._mean).div_(self._std)
        frames = values.unsqueeze(2).expand(-1, -1, self._shape.frames, -1, -1)  # a still image stands in every frame
        seen = self._visual(
            frames.flatten(1).to(self._visual.dtype), grid_thw=torch.tensor([[1, *grid]], device=pixels.device)
        )
        return torch.cat([seen.pooler_output, *seen.deepstack_features], dim=1)
