"""One step's loss: what a batch's forward pass is asked for, and the auxiliary heads that are dropped at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lakerank.training.augment import augment
from lakerank.training.batches import Batch
from lakerank.training.config import StageConfig
from lakerank.training.forward import PairStates, bag_states, encode_images, score_pairs
from lakerank.training.learner import Learner
from lakerank.training.losses import (
    RANKING_LOSSES,
    binary_cross_entropy,
    contrastive_softmax,
    margin_mse,
    proxy_softmax,
    symmetric_listnet,
)
from lakerank.training.sequences import Side, Sides, pad
from lakerank.training.tables import TrainingLake

#: Mean and standard deviation of each channel, as Qwen2-VL's image processor normalises (CLIP's values).
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)

#: Heads' log odds are summed and divided by the root of so many times the heads: what is alike is then as similar with
#: many narrow heads as with few wide ones.
SIMILARITY_SPREAD = 1.5


@dataclass(frozen=True)
class Material:
    """A lake made ready: every document's and query's sequence, and the pictures."""

    lake: TrainingLake
    documents: Sequence[Side]
    queries: Sequence[Side]
    pixels: Sequence[Tensor]  # each (3, height, width) uint8
    padding: int


def batch_loss(
    learner: Learner,
    material: Material,
    batch: Batch,
    stage: StageConfig,
    bias: float,
    generator: torch.Generator | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of the stage's losses, and each by name. Pictures are augmented when a generator is given.

    Ranking, pointwise and distillation losses are means over groups, so that a batch's are the means of its shards';
    the contrastive loss is over all that is computed together.
    """
    if stage.bag:
        return _summed(_bag_losses(learner, material, batch, stage, generator))
    pair_documents, pair_queries = pairs_of(batch, stage.ranking is not None)
    places = (batch.documents, batch.queries, pair_documents.to(learner.device), pair_queries.to(learner.device))
    states = forward(learner, material, *places, whole=stage.ranking is not None, generator=generator)
    grid = Judged.of(batch, learner.device)
    parts: dict[str, tuple[float, Tensor]] = {}
    if stage.ranking is not None and states.logits is not None:
        logits = states.logits.view(batch.groups, *batch.shape)
        parts |= _group_losses(stage, logits, grid.groups(batch.groups), bias)
    if stage.contrastive_weight:
        one = _one_pair_a_query(pair_queries, len(batch.queries), generator).to(learner.device)
        similarity = similarities(learner, states, one)
        parts["contrastive"] = (stage.contrastive_weight, contrastive_softmax(similarity, grid.grades, grid.known))
    if stage.proxy_weight and learner.proxies is not None:
        parts["proxies"] = (stage.proxy_weight, _proxy_loss(learner, material.lake, batch, states, pair_queries))
    return _summed(parts)


def _summed(parts: Mapping[str, tuple[float, Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of losses, and each by name."""
    total = torch.stack([weight * loss for weight, loss in parts.values()]).sum()
    return total, {name: loss.detach() for name, (_, loss) in parts.items()}


@dataclass(frozen=True)
class Judged:
    """What is known of a grid of documents × queries (D, Q): grades, which to use, a teacher's logits (or NaN)."""

    grades: Tensor
    known: Tensor
    teacher: Tensor | None

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> Judged:
        """A batch's whole grid, on a device."""
        teacher = None if batch.teacher is None else torch.from_numpy(batch.teacher).to(device)
        return cls(torch.from_numpy(batch.grades).to(device), torch.from_numpy(batch.known).to(device), teacher)

    def groups(self, count: int) -> list[Judged]:
        """The grids within each of so many groups."""
        height, width = (length // count for length in self.grades.shape)
        spans = [(slice(g * height, (g + 1) * height), slice(g * width, (g + 1) * width)) for g in range(count)]
        return [
            Judged(self.grades[span], self.known[span], None if self.teacher is None else self.teacher[span])
            for span in spans
        ]


def _group_losses(
    stage: StageConfig, logits: Tensor, judged: Sequence[Judged], bias: float
) -> dict[str, tuple[float, Tensor]]:
    """Weights and losses of logits (G, D, Q), each the mean over groups."""
    ranking = RANKING_LOSSES[stage.ranking or "listnet"]
    losses = {
        "ranking": [ranking(own, grid.grades, grid.known) for own, grid in zip(logits, judged, strict=True)],
        "pointwise": [
            binary_cross_entropy(own - bias, grid.grades, grid.known) for own, grid in zip(logits, judged, strict=True)
        ],
    }
    weights = {"ranking": stage.ranking_weight, "pointwise": stage.pointwise_weight}
    if stage.distillation_weight:
        weights["distillation"] = stage.distillation_weight
        losses["distillation"] = [
            margin_mse(own, grid.teacher, grid.known)
            for own, grid in zip(logits, judged, strict=True)
            if grid.teacher is not None
        ]
    return {name: (weight, torch.stack(losses[name]).mean()) for name, weight in weights.items() if losses[name]}


def pairs_of(batch: Batch, whole: bool) -> tuple[Tensor, Tensor]:
    """All pairs within each group, document by document; or each query once, behind another's document."""
    height, width = batch.shape
    group = torch.arange(batch.groups)[:, None, None]
    if not whole:
        own = (group[:, :, 0] * height + torch.arange(width)).flatten()  # each query's own document
        return own.roll(len(own) // 2 + 1), torch.arange(len(own))
    shape = (batch.groups, height, width)
    documents = (group * height + torch.arange(height)[None, :, None]).expand(shape)
    queries = (group * width + torch.arange(width)[None, None, :]).expand(shape)
    return documents.flatten(), queries.flatten()


def forward(
    learner: Learner,
    material: Material,
    documents: np.ndarray,
    queries: np.ndarray,
    pair_documents: Tensor,
    pair_queries: Tensor,
    *,
    whole: bool = True,
    generator: torch.Generator | None = None,
) -> PairStates:
    """Score pairs of rows of the lake; vision once a picture, a prefix once a document."""
    prefixes, suffixes, visual = _sides(learner, material, documents, queries, generator)
    return score_pairs(
        learner.network,
        prefixes,
        suffixes,
        visual,
        pair_documents.to(learner.device),
        pair_queries.to(learner.device),
        learner.tap,
        whole=whole,
        checkpointing=learner.checkpointing,
    )


def _sides(
    learner: Learner, material: Material, documents: np.ndarray, queries: np.ndarray, generator: torch.Generator | None
) -> tuple[Sides, Sides, Tensor | None]:
    """Rows as prefixes and suffixes, and the visual tokens of the pictures in them."""
    prefixes = pad([material.documents[row] for row in documents], material.padding).to(learner.device)
    suffixes = pad([material.queries[row] for row in queries], material.padding).to(learner.device)
    pictures = [material.pixels[picture] for picture in (*prefixes.images, *suffixes.images)]
    return prefixes, suffixes, _visual(learner, pictures, generator) if pictures else None


def _visual(learner: Learner, pictures: Sequence[Tensor], generator: torch.Generator | None) -> Tensor:
    """Visual tokens (T, H) of pictures (3, height, width) in their order; pictures of one size go together."""
    vision = learner.network.model.visual
    places: dict[torch.Size, list[int]] = {}
    for place, picture in enumerate(pictures):
        places.setdefault(picture.shape, []).append(place)
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))
    tokens: dict[int, Tensor] = {}
    for alike in places.values():
        pixels = torch.stack([pictures[place] for place in alike]).float() / 255
        if generator is not None:
            pixels = augment(pixels, generator)
        normalised = ((pixels - mean) / deviation).to(learner.device)
        encoded = encode_images(vision, normalised, learner.checkpointing)
        tokens |= dict(zip(alike, encoded.view(len(alike), -1, encoded.shape[-1]), strict=True))
    return torch.cat([tokens[place] for place in range(len(pictures))])


def similarities(learner: Learner, states: PairStates, pairs: Tensor) -> Tensor:
    """Similarity of documents and some pairs' queries (D, Q): whether the score token looks at the document's end.

    It is the log odds of layer `tap`'s attention, head by head, that token against all of the query's own. So the
    contrastive loss teaches where that layer looks: away from the query where, and only where, a document matches.
    """
    text = learner.network.model.language_model
    layer = text.layers[learner.tap]
    attention = layer.self_attn
    every = torch.arange(len(pairs), device=pairs.device)
    own, positions, ends = states.pair_states[pairs], states.pair_positions[:, pairs], states.pair_ends[pairs]
    read = layer.input_layernorm(own)  # (Q, S, H)
    queries = _heads(attention.q_proj(read[every, ends]), attention.head_dim)
    queries = _turn(text, queries, positions[:, every, ends]).float()
    documents = _heads(attention.k_proj(layer.input_layernorm(states.document_states)), attention.head_dim)
    documents = _turn(text, documents, states.document_positions).float()
    keys = _heads(attention.k_proj(read).flatten(0, 1), attention.head_dim)
    keys = _turn(text, keys, positions.flatten(1)).float()
    keys = keys.view(*own.shape[:2], *keys.shape[1:])  # (Q, S, key heads, d)
    shared = queries.shape[1] // documents.shape[1]
    found = torch.einsum("dhe,qhe->dqh", documents.repeat_interleave(shared, dim=1), queries) * attention.scaling
    stays = torch.einsum("qshe,qhe->qsh", keys.repeat_interleave(shared, dim=2), queries) * attention.scaling
    padding = torch.arange(own.shape[1], device=ends.device) > ends.unsqueeze(1)  # (Q, S)
    stays = stays.masked_fill(padding.unsqueeze(-1), float("-inf")).logsumexp(1)  # (Q, heads)
    similarity: Tensor = (found - stays).sum(-1) / (SIMILARITY_SPREAD * queries.shape[1]) ** 0.5
    return similarity


def _heads(states: Tensor, width: int) -> Tensor:
    return states.view(len(states), -1, width)  # (B, heads, d)


def _turn(text: Any, states: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding of (B, heads, d) at positions (3, B)."""
    cos, sin = text.rotary_emb(states, positions.unsqueeze(1))
    half = states.shape[-1] // 2
    turned = torch.cat([-states[..., half:], states[..., :half]], dim=-1)
    rotated: Tensor = states * cos[0].unsqueeze(1) + turned * sin[0].unsqueeze(1)
    return rotated


def _one_pair_a_query(pair_queries: Tensor, queries: int, generator: torch.Generator | None) -> Tensor:
    """For each query, one of its pairs at random (Q,)."""
    order = torch.randperm(len(pair_queries), generator=generator)
    chosen = torch.zeros(queries, dtype=torch.long)
    chosen[pair_queries[order]] = order
    return chosen


def _proxy_loss(learner: Learner, lake: TrainingLake, batch: Batch, states: PairStates, pair_queries: Tensor) -> Tensor:
    """Documents and score tokens each name their topic."""
    norm = learner.network.model.language_model.layers[learner.tap].input_layernorm
    of_pairs = batch.queries[pair_queries.numpy()]
    return _named(learner, lake, (norm(states.document_states), norm(states.score_states)), (batch.documents, of_pairs))


def _bag_losses(
    learner: Learner, material: Material, batch: Batch, stage: StageConfig, generator: torch.Generator | None
) -> dict[str, tuple[float, Tensor]]:
    """Weights and losses of rows' mean tokens: documents and queries name their topic, and find each other."""
    sides = _sides(learner, material, batch.documents, batch.queries, generator)
    width = learner.network.config.text_config.hidden_size
    documents, queries = (
        torch.nn.functional.rms_norm(mean.float(), (width,)) for mean in bag_states(learner.network, *sides)
    )
    named = _named(learner, material.lake, (documents, queries), (batch.documents, batch.queries))
    parts = {"proxies": (stage.proxy_weight, named)}
    if stage.contrastive_weight:
        grid = Judged.of(batch, learner.device)
        similarity = documents @ queries.T / width**0.5
        parts["contrastive"] = (stage.contrastive_weight, symmetric_listnet(similarity, grid.grades, grid.known))
    return parts


def _named(
    learner: Learner, lake: TrainingLake, states: tuple[Tensor, Tensor], rows: tuple[np.ndarray, np.ndarray]
) -> Tensor:
    """Cross-entropy of naming the topics of rows of documents and queries, the mean of both."""
    if learner.proxies is None:
        raise ValueError("no proxies without topics")
    losses = []
    for some, items, own in zip(states, (lake.documents, lake.queries), rows, strict=True):
        topics = torch.from_numpy(items.topics[own]).to(learner.device)
        losses.append(proxy_softmax(learner.proxies(some), topics))
    return (losses[0] + losses[1]) / 2
