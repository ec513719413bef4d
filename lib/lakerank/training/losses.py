"""Ranking losses over a grid of documents × queries, named by the papers they come from.

`scores` are (D, Q); `grades` (D, Q) are relevance grades, 0 for irrelevant; `known` (D, Q) is False where it must not
be used: unjudged, a suspected false negative, or a pair held out of training.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

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


def contrastive_softmax(log_odds: Tensor, grades: Tensor, known: Tensor) -> Tensor:
    """ListNet in both directions where looking at no document, whose log odds are 0, competes too.

    So what matches is found, and not only found sooner than what does not.
    """
    nowhere = (0, 0, 0, 1)  # a document more: (D, Q) -> (D + 1, Q)
    return symmetric_listnet(F.pad(log_odds, nowhere), F.pad(grades, nowhere), F.pad(known, nowhere, value=True))


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

    `teacher` (D, Q) is NaN where the teacher was not asked; pairs of such documents do not count.
    """
    asked = known & ~teacher.isnan()
    wanted = teacher.nan_to_num()
    difference = (scores.unsqueeze(1) - scores.unsqueeze(0)) - (wanted.unsqueeze(1) - wanted.unsqueeze(0))  # (D, D, Q)
    apart = ~torch.eye(len(scores), dtype=torch.bool, device=scores.device).unsqueeze(-1)
    return _mean(difference.square(), asked.unsqueeze(1) & asked.unsqueeze(0) & apart)


def proxy_softmax(similarities: Tensor, topics: Tensor) -> Tensor:
    """Cross-entropy over learned proxies, one a topic (Movshovitz-Attias et al. 2017): (B, T), (B,) -> ()."""
    return F.cross_entropy(similarities.float(), topics)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Mean over the places that count; 0, with a gradient of 0, where there are none."""
    return torch.where(where, values, 0.0).sum() / where.sum().clamp(min=1)


RANKING_LOSSES: dict[str, Loss] = {"listnet": symmetric_listnet, "ranknet": ranknet}
