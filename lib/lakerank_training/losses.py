"""Ranking losses over a grid of documents × queries, and the objective of fine-tuning that adds them up.

`scores` are (D, Q); `grades` (D, Q) are relevance grades, 0 for irrelevant; `known` (D, Q) is False where it must not
be used: unjudged, a suspected false negative, or a pair held out of training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lakerank_training.batches import Batch, Sampler, TrainingStage
from lakerank_training.dataset import Rows
from lakerank_training.inputs import EncodedDataset
from lakerank_training.model import PairNetwork

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def listnet(scores: Tensor, grades: Tensor, known: Tensor) -> Tensor:
    """Softmax cross-entropy down each query's column (ListNet, Cao et al. 2007); columns without a positive count not.

    With one positive a column it is InfoNCE (van den Oord et al. 2018) over the documents at hand.
    """
    target = grades.float() * known
    mass = target.sum(0)  # (Q,)
    log_share = scores.masked_fill(~known, float("-inf")).log_softmax(0).masked_fill(~known, 0.0)
    losses = -(target * log_share).sum(0) / mass.clamp(min=1e-9)
    return _mean(losses, mass > 0)


def symmetric_listnet(scores: Tensor, grades: Tensor, known: Tensor) -> Tensor:
    """ListNet in both directions, as CLIP trains (Radford et al. 2021): rank documents for a query, and the reverse."""
    return (listnet(scores, grades, known) + listnet(scores.T, grades.T, known.T)) / 2


def ranknet(scores: Tensor, grades: Tensor, known: Tensor) -> Tensor:
    """Logistic loss on score differences of differently graded documents of a query (RankNet, Burges et al. 2005)."""
    difference = scores.unsqueeze(1) - scores.unsqueeze(0)  # (D, D, Q)
    ordered = (grades.unsqueeze(1) > grades.unsqueeze(0)) & known.unsqueeze(1) & known.unsqueeze(0)
    return _mean(F.softplus(-difference), ordered)


def binary_cross_entropy(scores: Tensor, grades: Tensor, known: Tensor) -> Tensor:
    """Pointwise cross-entropy of sigmoid(score) with 'relevant or not', positives and negatives weighing the same."""
    relevant = grades > 0
    losses = F.binary_cross_entropy_with_logits(scores, relevant.float(), reduction="none")
    return (_mean(losses, relevant & known) + _mean(losses, ~relevant & known)) / 2


def margin_mse(scores: Tensor, teacher: Tensor, known: Tensor) -> Tensor:
    """Squared error of score differences between a query's documents, against a teacher's (Hofstätter et al. 2020).

    `teacher` (D, Q) is NaN where the teacher has no score; pairs of such documents do not count.
    """
    scored = known & ~teacher.isnan()
    target = teacher.nan_to_num()
    difference = (scores.unsqueeze(1) - scores.unsqueeze(0)) - (target.unsqueeze(1) - target.unsqueeze(0))  # (D, D, Q)
    apart = ~torch.eye(len(scores), dtype=torch.bool, device=scores.device).unsqueeze(-1)
    return _mean(difference.square(), scored.unsqueeze(1) & scored.unsqueeze(0) & apart)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Mean over the places that count; 0, with a gradient of 0, where there are none."""
    return torch.where(where, values, 0.0).sum() / where.sum().clamp(min=1)


RANKING_LOSSES: dict[str, Loss] = {"listnet": symmetric_listnet, "ranknet": ranknet}


def labels(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Grades and which of them are known, (D, Q) each, on a device."""
    return torch.from_numpy(batch.grades).to(device), torch.from_numpy(batch.known).to(device)


#: A loss's weight and value, by its name.
WeightedLosses = dict[str, tuple[float, Tensor]]


class Objective(Protocol):
    """What steps minimise, stage by stage: `RankingObjective`, or a recipe's own around it.

    `loss_names`: of all losses, in the order in which processes add them up. `parameters`: everything that some stage
    trains, by name. `start_step` prepares for a step, the `first` of its stage or not. `draw`: a step's batch, when the
    stage is so far, in [0, 1). `pairs`: places (P,) of documents and (P,) of queries in the batch that are scored
    together. `losses`: of a batch. `grid_scores`: scores (D, Q) of held-out rows, as the stage ranks; the network is in
    evaluation mode, without gradients.
    """

    @property
    def network(self) -> PairNetwork: ...
    @property
    def loss_names(self) -> tuple[str, ...]: ...
    def parameters(self) -> dict[str, nn.Parameter]: ...
    def start_step(self, stage: TrainingStage, first: bool) -> None: ...
    def draw(self, sampler: Sampler, random: np.random.Generator, progress: float) -> Batch: ...
    def pairs(self, stage: TrainingStage, batch: Batch) -> tuple[Tensor, Tensor]: ...
    def losses(self, stage: TrainingStage, batch: Batch) -> WeightedLosses: ...
    def grid_scores(self, stage: TrainingStage, data: EncodedDataset, documents: Rows, queries: Rows) -> np.ndarray: ...


@dataclass(frozen=True)
class RankingObjective:
    """Ranking, pointwise and distillation losses within each group of a batch.

    They are means over groups, so that a batch's are the means of its shards'. `logit_bias`: the logit at which
    relevance is a half.
    """

    network: PairNetwork
    data: EncodedDataset
    logit_bias: float
    loss_names: tuple[str, ...] = ("ranking", "pointwise", "distillation")

    def parameters(self) -> dict[str, nn.Parameter]:
        """Weights of the network that take gradients."""
        named = self.network.network.named_parameters()
        return {f"network.{name}": value for name, value in named if value.requires_grad}

    def start_step(self, stage: TrainingStage, first: bool) -> None:
        """Nothing to prepare: all parameters are trained in every stage."""

    def draw(self, sampler: Sampler, random: np.random.Generator, progress: float) -> Batch:
        """Of topics at random."""
        return sampler.draw(random, sampler.draw_topics(random))

    def pairs(self, stage: TrainingStage, batch: Batch) -> tuple[Tensor, Tensor]:
        """All pairs within each group, document by document."""
        height, width = batch.shape
        group, document, query = torch.cartesian_prod(*map(torch.arange, (batch.groups, height, width))).T
        return group * height + document, group * width + query

    def losses(self, stage: TrainingStage, batch: Batch) -> WeightedLosses:
        """Of the logits of every pair of a group."""
        rows = (batch.documents, batch.queries)
        return self.of_logits(stage, batch, self.network.logits(self.data, rows, self.pairs(stage, batch)))

    def of_logits(self, stage: TrainingStage, batch: Batch, logits: Tensor) -> WeightedLosses:
        """Losses of the logits (P,) of `pairs`, each the mean over groups."""
        ranking = RANKING_LOSSES[stage.ranking or "listnet"]
        by_name: dict[str, list[Tensor]] = {"ranking": [], "pointwise": [], "distillation": []}
        for scores, group in zip(logits.view(batch.groups, *batch.shape), batch.shards(batch.groups), strict=True):
            grades, known = labels(group, scores.device)
            by_name["ranking"].append(ranking(scores, grades, known))
            by_name["pointwise"].append(binary_cross_entropy(scores - self.logit_bias, grades, known))
            if stage.distillation_weight and group.teacher is not None:
                teacher = torch.from_numpy(group.teacher).to(scores.device)
                by_name["distillation"].append(margin_mse(scores, teacher, known))
        weights = (stage.ranking_weight, stage.pointwise_weight, stage.distillation_weight)
        named = zip(weights, by_name.items(), strict=True)
        return {name: (weight, torch.stack(losses).mean()) for weight, (name, losses) in named if losses}

    def grid_scores(
        self, stage: TrainingStage, data: EncodedDataset, documents: Rows, queries: Rows, queries_at_once: int = 20
    ) -> np.ndarray:
        """Logits (D, Q) of every pair."""
        columns = []
        for start in range(0, len(queries), queries_at_once):
            some = queries[start : start + queries_at_once]
            places = torch.cartesian_prod(torch.arange(len(documents)), torch.arange(len(some)))
            logits = self.network.logits(data, (documents, some), (places[:, 0], places[:, 1]))
            columns.append(logits.view(len(documents), len(some)).float().cpu().numpy())
        return np.concatenate(columns, axis=1)


def total_loss(losses: WeightedLosses) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The weighted sum of losses, and each by name."""
    total = torch.stack([weight * loss for weight, loss in losses.values()]).sum()
    return total, {name: loss.detach() for name, (_, loss) in losses.items()}
