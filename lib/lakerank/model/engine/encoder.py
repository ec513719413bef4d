"""XLM-RoBERTa with a score head over packed rows: sequences of pairs, unpadded, each attending to itself alone.

Sources: transformers, `models/xlm_roberta/modeling_xlm_roberta.py` (`XLMRobertaForSequenceClassification`: post-norm
layers, exact GELU, positions counted from `pad_token_id` + 1, a head of dense, tanh and projection on the first token),
with which jina's own implementation of the same network agrees (jinaai/jina-reranker-v2-base-multilingual,
`modeling_xlm_roberta.py`, `block.py`, `mha.py`).

Shapes: M packed rows, hidden size h, H heads, head dimension D; B sequences of L tokens each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from lakerank.model.cross_encoder.config import EncoderShape
from lakerank.model.engine.budget import layer_bytes
from lakerank.model.engine.layout import Varlen
from lakerank.model.engine.linear import BatchInvariantLinear, LinearWeights, project

#: Rows whose MLP, four times as wide as the hidden states, is computed at once: what stays in a core's cache, and what
#: keeps a GPU busy.
_MLP_ROWS_CPU = 256
_MLP_ROWS_GPU = 16384


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """Scale and shift, both (h,)."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True)
class EncoderLayer:
    """Weights of a layer; `query_key_value` (3 h, h) are three linear layers joined in that order."""

    query_key_value: LinearWeights
    out: LinearWeights
    norm: LayerNorm
    up: LinearWeights
    down: LinearWeights
    mlp_norm: LayerNorm


@dataclass(frozen=True, slots=True)
class EncoderWeights:
    """A network's tensors: `words` (vocabulary, h), `positions` (positions, h), `types` (types, h)."""

    words: Tensor
    positions: Tensor
    types: Tensor
    norm: LayerNorm
    layers: tuple[EncoderLayer, ...]
    dense: LinearWeights
    score: LinearWeights


@dataclass(frozen=True, slots=True)
class EqualLengths:
    """`count` adjacent sequences of `length` tokens each, from row `start` on, which share a call of attention."""

    start: int
    count: int
    length: int

    @property
    def rows(self) -> slice:
        """Their rows."""
        return slice(self.start, self.start + self.count * self.length)


def equal_lengths(lengths: Sequence[int]) -> list[EqualLengths]:
    """Adjacent sequences grouped by length."""
    groups, row = [], 0
    for length, adjacent in groupby(lengths):
        groups.append(EqualLengths(row, len(list(adjacent)), length))
        row += groups[-1].count * length
    return groups


class PackedEncoder:
    """Logits of packed sequences, without gradients.

    Thread-safe; on a CPU each thread must have one of torch's threads to itself, or a row's bits depend on its place.
    """

    def __init__(self, shape: EncoderShape, weights: EncoderWeights) -> None:
        self.shape = shape
        self.linear = BatchInvariantLinear()
        self._weights = weights
        self._positions = (weights.positions.float() + weights.types[0].float()).to(weights.positions.dtype)
        self._dense, self._score = weights.dense.float(), weights.score.float()
        self._mlp_rows = _MLP_ROWS_CPU if self.device.type == "cpu" else _MLP_ROWS_GPU

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._weights.words.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return self._weights.words.dtype

    @property
    def bytes_per_token(self) -> int:
        """Memory of a token: one layer's activations, for nothing is kept."""
        return layer_bytes(self.shape.hidden, self.shape.inner, self.dtype)

    def weights(self) -> Iterator[LinearWeights]:
        """Weights of the first layer, whose shapes all layers have, and of the head."""
        layer = self._weights.layers[0]
        yield from (layer.query_key_value, layer.out, layer.up, layer.down, self._dense)

    @torch.inference_mode()
    def logits(
        self, token_ids: Tensor, positions: Tensor, lengths: Sequence[int], varlen: Varlen | None = None
    ) -> Tensor:
        """Raw float32 logits (P,) of sequences of these lengths.

        Args:
            token_ids: (M,) int64, M padded as `linear` needs; rows after the sequences' are padding.
            positions: (M,) int64, each token's row of the table of positions.
            varlen: attention of all rows at once, where there is a kernel for it.
        """
        weights, groups = self._weights, equal_lengths(lengths)
        starts = torch.tensor([group.start + n * group.length for group in groups for n in range(group.count)])
        padding = self.linear.padded(len(starts)) - len(starts)
        first = torch.cat([starts, starts[:1].expand(padding)]).to(self.device)  # (P',)
        hidden = weights.words[token_ids].add_(self._positions[positions])
        hidden = self._normed(hidden, weights.norm)
        for layer in weights.layers[:-1]:
            query, key, value = self._heads(hidden, layer.query_key_value).unbind(1)
            attended = varlen(query, key, value) if varlen else _attention(query, key, value, groups)
            hidden = self._after_attention(layer, hidden, attended)
        hidden = self._last_layer(weights.layers[-1], hidden, first, groups, varlen)
        return self._head(hidden)[: len(lengths)]

    def _last_layer(
        self, layer: EncoderLayer, hidden: Tensor, first: Tensor, groups: Sequence[EqualLengths], varlen: Varlen | None
    ) -> Tensor:
        """The last layer for each sequence's first token alone, rows `first` (P',): (M, h) -> (P', h)."""
        if varlen:
            query, key, value = self._heads(hidden, layer.query_key_value).unbind(1)
            attended = varlen(query, key, value)[first]
        else:
            h = self.shape.hidden
            key, value = self._heads(hidden, layer.query_key_value.rows(h, None)).unbind(1)
            query = self._heads(hidden[first], layer.query_key_value.rows(None, h))[:, 0]
            attended = _attention(query, key, value, groups, first_only=True)
        return self._after_attention(layer, hidden[first], attended)

    def _heads(self, hidden: Tensor, weights: LinearWeights) -> Tensor:
        """(M, h) -> (M, number of joined layers, H, D)."""
        states = self.linear(hidden, *weights)
        return states.view(len(hidden), -1, self.shape.heads, self.shape.hidden // self.shape.heads)

    def _after_attention(self, layer: EncoderLayer, hidden: Tensor, attended: Tensor) -> Tensor:
        """Output projection, MLP and norms: (M, h), (M, H, D) -> (M, h)."""
        out = self.linear(attended.flatten(1), *layer.out)
        hidden = self._normed(out.add_(hidden), layer.norm)
        for part in self.linear.split(hidden, self._mlp_rows):
            inner = F.gelu(self.linear(part, *layer.up))
            part.copy_(self._normed(self.linear(inner, *layer.down).add_(part), layer.mlp_norm))
        return hidden

    def _normed(self, rows: Tensor, norm: LayerNorm) -> Tensor:
        return F.layer_norm(rows, (rows.shape[-1],), norm.weight, norm.bias, self.shape.epsilon)

    def _head(self, hidden: Tensor) -> Tensor:
        """Raw logits in float32, whatever the network's dtype: (P', h) -> (P',)."""
        return project(torch.tanh(self.linear(hidden.float(), *self._dense)), self._score)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, groups: Sequence[EqualLengths], first_only: bool = False
) -> Tensor:
    """Attention within each sequence: three of (M, H, D) -> (M, H, D), zero in padding.

    `first_only`: of each sequence's first token, whose queries are (P', H, D) -> (P', H, D).
    """
    out = torch.zeros(query.shape, dtype=query.dtype, device=query.device)
    start = 0
    for group in groups:
        length = 1 if first_only else group.length
        rows = slice(start, start + group.count * length)
        q = _batched(query[rows], length)
        k, v = (_batched(states[group.rows], group.length) for states in (key, value))
        out[rows] = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1)
        start = rows.stop
    return out


def _batched(states: Tensor, length: int) -> Tensor:
    """(B * L, H, D) -> (B, H, L, D), not copied."""
    return states.view(-1, length, *states.shape[1:]).transpose(1, 2)
