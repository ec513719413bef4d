"""The curriculum's losses (bags of tokens, where layer `tap` looks, naming topics), and what each stage trains."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lakerank_pictograms.curriculum.config import CurriculumStage
from lakerank_pictograms.curriculum.similarity import TapStates, contrastive_softmax, similarities
from lakerank_training.batches import Batch, Sampler
from lakerank_training.dataset import Dataset, Rows
from lakerank_training.inputs import EncodedDataset, PaddedInputs
from lakerank_training.losses import RankingObjective, WeightedLosses, labels, symmetric_listnet
from lakerank_training.model import PairForward, PairNetwork

#: What an MLP that recalls topics multiplies its keys and values by; found by trying a few.
RECALL_KEYS, RECALL_VALUES = 0.5, 0.2

#: What of layer `tap` its attention logits come from.
SIMILARITY_PARTS = ("input_layernorm.", "self_attn.q_proj.", "self_attn.k_proj.")

#: Topics that a mined group is drawn from.
NEAREST_TOPICS = 48


@dataclass(frozen=True)
class TemplateTokens:
    """Tokens of the prompt before and after a row's own, the score token apart."""

    document_head: int
    document_tail: int
    query_head: int


@dataclass(frozen=True)
class Apart:
    """Documents (D,) and queries (Q,) of a dataset that are never paired with an image."""

    documents: npt.NDArray[np.bool_]
    queries: npt.NDArray[np.bool_]

    def meet_images(self, dataset: Dataset, documents: Rows, queries: Rows) -> npt.NDArray[np.bool_]:
        """Pairs (D, Q) of rows of which one is kept apart and the other is an image."""
        by_document = self.documents[documents][:, None] & (dataset.queries.images[queries] >= 0)[None]
        by_query = self.queries[queries][None] & (dataset.documents.images[documents] >= 0)[:, None]
        meet: npt.NDArray[np.bool_] = by_document | by_query
        return meet


@dataclass(frozen=True)
class CurriculumObjective:
    """The objective of each stage. `proxies`: one vector a topic, which no checkpoint keeps; None without topics."""

    ranking: RankingObjective
    proxies: nn.Linear | None
    tap: int
    template: TemplateTokens
    trainable: Mapping[str, nn.Parameter]
    apart: Apart

    @property
    def network(self) -> PairNetwork:
        """What is trained."""
        return self.ranking.network

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Those of ranking, then the curriculum's."""
        return (*self.ranking.loss_names, "contrastive", "proxies")

    def parameters(self) -> dict[str, nn.Parameter]:
        """Of the network and the proxies, whatever the stage."""
        return dict(self.trainable)

    def start_step(self, stage: CurriculumStage, first: bool) -> None:
        """Let the stage's parameters take gradients; recall the topics as the stage that does so begins."""
        for name, parameter in self.trainable.items():
            if stage.upper_only:
                parameter.requires_grad_(is_upper(name, self.tap))
            else:
                parameter.requires_grad_(not stage.layers_only or is_layer(name))
        if stage.recall and first:
            self.recall()

    @torch.no_grad()
    def recall(self) -> None:
        """Make the MLP before layer `tap` answer what resembles a proxy with that proxy's direction.

        A feed-forward layer is a memory of keys and values (Geva et al. 2021); the square that gate and product make
        of likeness selects the intended topic (dense associative memory, Krotov and Hopfield 2016).
        """
        topics = self._proxies.weight
        mlp = self.network.text.layers[self.tap - 1].mlp
        for keys in (mlp.gate_proj.weight, mlp.up_proj.weight):
            keys[: len(topics)] = RECALL_KEYS * topics
        mlp.down_proj.weight[:, : len(topics)] = RECALL_VALUES * F.normalize(topics, dim=1).T

    @property
    def _proxies(self) -> nn.Linear:
        if self.proxies is None:
            raise ValueError("no proxies without topics")
        return self.proxies

    def draw(self, sampler: Sampler, random: np.random.Generator, progress: float) -> Batch:
        """In a bag, rows of one topic are relevant to each other, whatever else judgements name."""
        stage = cast(CurriculumStage, sampler.stage)
        topics = self._draw_topics(sampler, random, stage.mined_share(progress))
        dataset = self.ranking.data.dataset
        if stage.bag:
            rows = sampler.draw_rows(random, topics)
            same = dataset.same_topic(*rows).astype(np.int64)
            batch = Batch(*rows, stage.groups, same, ~dataset.same_image(*rows))
        else:
            batch = sampler.draw(random, topics)
        return replace(batch, known=batch.known & ~self.apart.meet_images(dataset, batch.documents, batch.queries))

    def _draw_topics(self, sampler: Sampler, random: np.random.Generator, share: float) -> Rows:
        """Topics at random; a share of the groups is made of a topic and others whose proxies are near its own."""
        if share <= 0 or self.proxies is None:
            return sampler.draw_topics(random)
        proxies = F.normalize(self.proxies.weight.detach().float(), dim=1)
        shape = (sampler.stage.groups, sampler.stage.group_size)
        return draw_mined(random, sampler.topics, shape, share, proxies)

    def pairs(self, stage: CurriculumStage, batch: Batch) -> tuple[Tensor, Tensor]:
        """All pairs within each group; without a ranking each query once, behind another's document."""
        if stage.ranking is not None:
            return self.ranking.pairs(stage, batch)
        height, width = batch.shape
        positives = (torch.arange(batch.groups)[:, None] * height + torch.arange(width)).flatten()
        return positives.roll(len(positives) // 2 + 1), torch.arange(len(positives))

    def losses(self, stage: CurriculumStage, batch: Batch) -> WeightedLosses:
        """The stage's losses. The contrastive one is over all that is computed together."""
        if stage.bag:
            return self._bag_losses(stage, batch)
        pair_documents, pair_queries = self.pairs(stage, batch)
        forward = self._forward(self.ranking.data, (batch.documents, batch.queries), (pair_documents, pair_queries))
        states = TapStates.of(forward)
        losses: WeightedLosses = {}
        if stage.ranking is not None:
            forward.through(self.network.text.layers[self.tap :])
            losses |= self.ranking.of_logits(stage, batch, forward.logits())
        if stage.contrastive_weight:
            one = _one_pair_a_query(pair_queries, len(batch.queries)).to(self.network.device)
            similarity = similarities(self.network.text, self.tap, states, one)
            contrastive = contrastive_softmax(similarity, *labels(batch, self.network.device))
            losses["contrastive"] = (stage.contrastive_weight, contrastive)
        if stage.proxy_weight and self.proxies is not None:
            norm = self.network.text.layers[self.tap].input_layernorm
            normed = (norm(states.documents), norm(states.scores))
            rows = (batch.documents, batch.queries[pair_queries.numpy()])
            losses["proxies"] = (stage.proxy_weight, self._topic_loss(normed, rows))
        return losses

    def grid_scores(self, stage: CurriculumStage, data: EncodedDataset, documents: Rows, queries: Rows) -> np.ndarray:
        """Logits (D, Q); before the layers above `tap` are trained, similarities where matching starts."""
        if stage.ranking is not None:
            return self.ranking.grid_scores(stage, data, documents, queries)
        count = torch.arange(len(queries))
        states = TapStates.of(self._forward(data, (documents, queries), (count.roll(1), count)))
        similarity = similarities(self.network.text, self.tap, states, count.to(self.network.device))
        scores: np.ndarray = similarity.float().cpu().numpy()
        return scores

    def _forward(self, data: EncodedDataset, rows: tuple[Rows, Rows], pairs: tuple[Tensor, Tensor]) -> PairForward:
        """Up to layer `tap`."""
        forward = PairForward(self.network, self.network.inputs(data, *rows), *pairs)
        forward.through(self.network.text.layers[: self.tap])
        return forward

    def _bag_losses(self, stage: CurriculumStage, batch: Batch) -> WeightedLosses:
        """Of rows' mean tokens: documents and queries name their topic, and find each other."""
        means = self.bags(self.ranking.data, batch.documents, batch.queries)
        documents, queries = (F.rms_norm(mean.float(), mean.shape[1:]) for mean in means)
        topics = self._topic_loss((documents, queries), (batch.documents, batch.queries))
        losses = {"proxies": (stage.proxy_weight, topics)}
        if stage.contrastive_weight:
            similarity = documents @ queries.T / documents.shape[1] ** 0.5
            contrastive = symmetric_listnet(similarity, *labels(batch, self.network.device))
            losses["contrastive"] = (stage.contrastive_weight, contrastive)
        return losses

    def bags(self, data: EncodedDataset, documents: Rows, queries: Rows) -> tuple[Tensor, Tensor]:
        """Means (D, H) and (Q, H) of what the first layer would read of each row's own tokens; no layer is computed."""
        inputs = self.network.inputs(data, documents, queries)
        embedded, norm = self.network.embed(inputs), self.network.text.layers[0].input_layernorm
        template = self.template
        return (
            _mean_of_own(norm(embedded[0]), inputs.documents, template.document_head, template.document_tail),
            _mean_of_own(norm(embedded[1]), inputs.queries, template.query_head, 1),
        )

    def _topic_loss(self, states: tuple[Tensor, Tensor], rows: tuple[Rows, Rows]) -> Tensor:
        """Cross-entropy of naming the topics of rows of documents and queries over the proxies, the mean of both."""
        dataset = self.ranking.data.dataset
        losses = []
        for normed, table, numbers in zip(states, (dataset.documents, dataset.queries), rows, strict=True):
            topics = torch.from_numpy(table.topics[numbers]).to(self.network.device)
            losses.append(proxy_softmax(self._proxies(normed), topics))
        return (losses[0] + losses[1]) / 2


def proxy_softmax(similarities: Tensor, topics: Tensor) -> Tensor:
    """Cross-entropy over learned proxies, one a topic (Movshovitz-Attias et al. 2017): (B, T), (B,) -> ()."""
    return F.cross_entropy(similarities.float(), topics)


def draw_mined(
    random: np.random.Generator, topics: Rows, shape: tuple[int, int], share: float, proxies: Tensor
) -> Rows:
    """Topics of so many groups of a size (`shape`), all different; a `share` of the groups is a topic and near ones."""
    groups, group_size = shape
    chosen: list[int] = []
    left = set(topics.tolist())
    seeds = [int(topic) for topic in random.permutation(topics)]
    for _ in range(groups):
        group = [next(topic for topic in seeds if topic in left)]
        left.discard(group[0])
        if random.random() < share:
            near = [topic for topic in _nearest(proxies, group[0]) if topic in left][: 2 * group_size]
            group += [int(topic) for topic in random.permutation(near)[: group_size - 1]]
            left.difference_update(group)
        for topic in seeds:
            if len(group) >= group_size:
                break
            if topic in left:
                group.append(topic)
                left.discard(topic)
        chosen += group
    return np.array(chosen, dtype=np.int64)


def _nearest(proxies: Tensor, topic: int) -> list[int]:
    likeness = proxies @ proxies[topic]
    likeness[topic] = -torch.inf
    nearest: list[int] = likeness.topk(min(NEAREST_TOPICS, len(likeness) - 1)).indices.tolist()
    return nearest


def is_layer(name: str) -> bool:
    """Whether a parameter belongs to the language model's layers, to what follows them, or to the proxies."""
    return any(part in name for part in ("language_model.layers.", "language_model.norm.", "score.", "proxies."))


def is_upper(name: str, tap: int) -> bool:
    """Whether a parameter comes after the similarity of layer `tap`: what layers do with what that one found."""
    if match := re.search(r"language_model\.layers\.(\d+)\.(\S+)", name):
        layer, part = int(match[1]), match[2]
        return layer > tap or (layer == tap and not part.startswith(SIMILARITY_PARTS))
    return "network.score." in name or "language_model.norm." in name


def _one_pair_a_query(pair_queries: Tensor, queries: int) -> Tensor:
    """For each query, one of its pairs at random (Q,)."""
    order = torch.randperm(len(pair_queries))
    chosen = torch.zeros(queries, dtype=torch.long)
    chosen[pair_queries[order]] = order
    return chosen


def _mean_of_own(states: Tensor, inputs: PaddedInputs, head: int, tail: int) -> Tensor:
    """Means (B, H) over the tokens between the prompt's: (B, L, H)."""
    steps = torch.arange(states.shape[1], device=states.device)
    is_own = (steps >= head) & (steps < inputs.lengths[:, None] - tail)  # (B, L)
    return (states * is_own.unsqueeze(-1)).sum(1) / is_own.sum(1, keepdim=True).clamp(min=1)
