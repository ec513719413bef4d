"""From the last hidden state of a pair to its logit: the score head of a ranker, or two words of a language model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor

from lakerank.model.engine.linear import RowProducts


class ReadOut(Protocol):
    """Raw relevance logits from hidden states."""

    def weights(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Weights and biases of the products of matrices in it."""
        ...

    def __call__(self, hidden: Tensor, products: RowProducts) -> Tensor:
        """In float32, whatever the network's dtype: (Q, h) -> (Q,)."""
        ...


class ScoreHead:
    """jina-reranker-m0's: two layers, ReLU between them."""

    def __init__(self, score: Any) -> None:
        self._weights = [parameter.float() for parameter in score.parameters()]

    def weights(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The first layer's."""
        yield self._weights[0], self._weights[1]

    def __call__(self, hidden: Tensor, products: RowProducts) -> Tensor:
        """(Q, h) -> (Q,)."""
        weight, bias, last_weight, last_bias = self._weights
        inner = F.relu(products.linear(hidden.float(), weight, bias))
        # A sum and no product of matrices: with one column those round by a row's place among the others.
        logits: Tensor = (inner * last_weight[0]).sum(dim=-1) + last_bias[0]
        return logits


class WordDifference:
    """How much likelier a language model finds one word than another next: the difference of their logits.

    The softmax over the two alone is its sigmoid. Of the language head nothing but their two rows is needed.
    """

    def __init__(self, yes: Tensor, no: Tensor) -> None:
        self._direction = yes.float() - no.float()  # (h,)

    def weights(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """None: it is a sum."""
        yield from ()

    def __call__(self, hidden: Tensor, products: RowProducts) -> Tensor:
        """(Q, h) -> (Q,)."""
        return (hidden.float() * self._direction).sum(dim=-1)
