"""XLM-RoBERTa, BERT and ModernBERT with a score head over packed rows: sequences of pairs, unpadded.

Sources: transformers, `models/xlm_roberta/modeling_xlm_roberta.py` (`XLMRobertaForSequenceClassification`: post-norm
layers, exact GELU, positions counted from `pad_token_id` + 1, a head of dense, tanh and projection on the first token),
with which jina's own implementation of the same network agrees (jinaai/jina-reranker-v2-base-multilingual,
`modeling_xlm_roberta.py`, `block.py`, `mha.py`); and `models/bert/modeling_bert.py` (`BertForSequenceClassification`:
the same layers and head, positions counted from 0, tokens of two types); and `models/modernbert/modeling_modernbert.py`
(`ModernBertForSequenceClassification`: pre-norm layers, rotary embeddings, gated GELU, local attention in most layers).

Shapes: M packed rows, hidden size h, H heads, head dimension D; B sequences of L tokens each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lakerank.model.engine.attention import block_attention
from lakerank.model.engine.budget import layer_bytes
from lakerank.model.engine.device import to_device
from lakerank.model.engine.elementwise.fused import choose_ops
from lakerank.model.engine.elementwise.plain import RotaryTable
from lakerank.model.engine.layout import Bucket, Packed, Varlen, packed, packed_rows, window_blocks
from lakerank.model.engine.linear import BatchInvariantLinear, LinearWeights, project

#: Rows whose MLP, four times as wide as the hidden states, is computed at once: what stays in a core's cache, and what
#: keeps a GPU busy.
_MLP_ROWS_CPU, _MLP_ROWS_GPU = 256, 16384

#: Rows of a block of local attention, which computes scores of the keys that any of them sees.
_LOCAL_ROWS = 64

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]]
_ACTIVATIONS = {"identity": torch.clone, "tanh": torch.tanh, "gelu": F.gelu, "relu": F.relu}


@dataclass(frozen=True, slots=True)
class LayerAttention:
    """Of a layer of ModernBERT the base of its rotary embeddings, and how many tokens on either side a token sees.

    None: it sees its whole sequence.
    """

    theta: float
    window: int | None

    def seen(self, tokens: int) -> int:
        """How many tokens those of a sequence see together."""
        window = tokens if self.window is None else min(self.window, tokens)
        return tokens * (2 * window + 1) - window * (window + 1)


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """What config.json says of the network. XLM-RoBERTa's `positions` count the `padding` + 1 that no token has.

    `attention`: of ModernBERT's layers; empty: the network is another.
    """

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    inner: int
    positions: int
    types: int
    padding: int
    epsilon: float
    attention: tuple[LayerAttention, ...] = ()

    def flops(self, tokens: int) -> float:
        """Operations that a sequence of so many tokens needs, two a multiply-add; its last layer, its first token's."""
        h, mlp = self.hidden, (3 if self.attention else 2) * self.hidden * self.inner
        seen = [kind.seen(tokens) for kind in self.attention[:-1]] or [tokens * tokens] * (self.layers - 1)
        layers = 2.0 * tokens * (4 * h * h + mlp) * (self.layers - 1) + 4.0 * h * sum(seen)
        last = 4.0 * tokens * h * h + 2.0 * (2 * h * h + mlp) + 4.0 * tokens * h
        return layers + last + 2.0 * h * (h + 1)


class LayerNorm(NamedTuple):
    """Scale (h,), shift (h,) or None, and what is added to the variance."""

    weight: Tensor
    bias: Tensor | None
    epsilon: float

    def __call__(self, rows: Tensor) -> Tensor:
        """(M, h) -> (M, h)."""
        weight, bias = (part if part is None else part.to(rows.dtype) for part in self[:2])
        return F.layer_norm(rows, (rows.shape[-1],), weight, bias, self.epsilon)


@dataclass(frozen=True, slots=True)
class EncoderLayer:
    """Weights of a layer; `key_value` (2 h, h) and ModernBERT's `up` (2 inner, h) are two linear layers joined.

    Norms follow attention and MLP; in ModernBERT they are before them, but for the first layer's attention.
    """

    query: LinearWeights
    key_value: LinearWeights
    out: LinearWeights
    norm: LayerNorm | None
    up: LinearWeights
    down: LinearWeights
    mlp_norm: LayerNorm


class HeadWeights(NamedTuple):
    """A layer of the head: a linear one, an activation by its name, a norm."""

    dense: LinearWeights
    activation: str
    norm: LayerNorm | None


@dataclass(frozen=True, slots=True)
class EncoderWeights:
    """A network's tensors: `words` (vocabulary, h), `positions` (positions, h), `types` (types, h).

    ModernBERT has neither of the latter two, and a `final_norm`. The head's last layer has one output; the head reads
    the `mean` of a sequence's states, or its first token's.
    """

    words: Tensor
    norm: LayerNorm
    layers: tuple[EncoderLayer, ...]
    head: tuple[HeadWeights, ...]
    mean: bool = False
    positions: Tensor | None = None
    types: Tensor | None = None
    final_norm: LayerNorm | None = None


#: Numbers of adjacent sequences that share a call of attention, and their length.
EqualLengths = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Packing:
    """How rows are sequences: `first` (P',) is the first row of each, padded. `rotations`: (2, M, 1, D/2), by theta.

    `packed`: attention of all rows, and of the first ones, by a kernel, where there is one; `blocks`: then, of layers
    with a window, by its size.
    """

    groups: EqualLengths
    first: Tensor
    rotations: Mapping[float, Tensor]
    packed: tuple[Packed, Packed] | None = None
    blocks: Mapping[int, Bucket] = field(default_factory=dict)


class PackedEncoder:
    """Logits of packed sequences, without gradients.

    Thread-safe; on a CPU each thread must have one of torch's threads to itself, or a row's bits depend on its place.
    """

    def __init__(self, shape: EncoderShape, weights: EncoderWeights) -> None:
        self.shape = shape
        self.linear = BatchInvariantLinear()
        self.device, self.dtype = weights.words.device, weights.words.dtype
        self.bytes_per_token = layer_bytes(shape.hidden, shape.inner * (2 if shape.attention else 1), self.dtype)
        self._weights = weights
        if weights.positions is not None and weights.types is not None:
            positions = weights.positions
            rows = [(positions.float() + of_type).to(positions.dtype) for of_type in weights.types.float()]
            self._positions = torch.cat(rows)
        self._head = [layer._replace(dense=layer.dense.float()) for layer in weights.head]
        self._mlp_rows = _MLP_ROWS_CPU if self.device.type == "cpu" else _MLP_ROWS_GPU
        self.ops = choose_ops(self.device, self.dtype)
        self._rotary = {kind.theta: self._rotary_table(kind.theta) for kind in shape.attention}

    def _rotary_table(self, theta: float) -> RotaryTable:
        """With all positions: it does not grow while threads read it."""
        dim = self.shape.hidden // self.shape.heads
        exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=self.device) / dim
        table = RotaryTable(1.0 / theta**exponents, 1.0, self.dtype)
        table.look_up(torch.zeros(1, 0, dtype=torch.int64), [table.size], self.shape.positions)
        return table

    def weights(self) -> Iterator[LinearWeights]:
        """Weights of the first layer, whose shapes all layers have, and of the head."""
        layer = self._weights.layers[0]
        yield from (layer.query, layer.key_value, layer.out, layer.up, layer.down)
        yield from (part.dense for part in self._head[:-1])

    @torch.inference_mode()
    def logits(
        self, token_ids: Tensor, positions: Tensor, lengths: Sequence[int], varlen: Varlen | None = None
    ) -> Tensor:
        """Raw float32 logits (P,) of sequences of these lengths.

        `token_ids` (M,) int64, M padded as `linear` needs: rows after the sequences' are padding. `positions` (M,)
        int64: rows of the positions' table, which has all positions for each type of token in turn; of ModernBERT,
        places in the sequence. `varlen`: attention of packed sequences, where there is a kernel for it.
        """
        weights = self._weights
        packing = self._packing(positions, lengths, varlen)
        hidden = weights.words[token_ids]
        hidden = weights.norm(hidden if weights.positions is None else hidden.add_(self._positions[positions]))
        for number in range(self.shape.layers):
            hidden = self._layer(number, hidden, packing)
        hidden = hidden if weights.final_norm is None else weights.final_norm(hidden)
        if weights.mean:
            means = [rows.float().mean(0) for rows in torch.split(hidden[: sum(lengths)], [*lengths])]
            hidden = F.pad(torch.stack(means), (0, 0, 0, len(packing.first) - len(means)))
        return self._scores(hidden.float())[: len(lengths)]

    def _packing(self, positions: Tensor, lengths: Sequence[int], varlen: Varlen | None) -> Packing:
        groups = [(len(list(adjacent)), length) for length, adjacent in groupby(lengths)]
        starts = [0, *accumulate(lengths[:-1])]
        padding = self.linear.padded(len(starts)) - len(starts)
        first = to_device(np.array(starts + [0] * padding), self.device)
        end, tables = self.shape.positions, self._rotary.items()
        rotations = {theta: table.look_up(positions[None], [table.size], end) for theta, table in tables}
        if varlen is None:
            return Packing(groups, first, rotations)
        every = packed_rows(varlen, lengths, len(positions), self.device)
        firsts = packed(varlen, [1] * (len(starts) - 1) + [1 + padding], lengths, self.device)
        windows = {kind.window for kind in self.shape.attention if kind.window is not None}
        blocks = {window: window_blocks(lengths, window, window, self.device) for window in windows}
        return Packing(groups, first, rotations, (every, firsts), blocks)

    def _layer(self, number: int, hidden: Tensor, packing: Packing) -> Tensor:
        """(M, h) -> (M, h); the last layer, where the head reads each sequence's first token alone, (M, h) -> (P', h).

        The first token's query alone is computed then, but in a window on a GPU.
        """
        layer, kinds = self._weights.layers[number], self.shape.attention
        states = layer.norm(hidden) if kinds and layer.norm else hidden
        first = packing.first if number == self.shape.layers - 1 and not self._weights.mean else None
        window = kinds[number].window if kinds else None
        asking = None if packing.blocks and window else first
        key, value = self._heads(states, layer.key_value).unbind(1)
        query = self._heads(states if asking is None else states[asking], layer.query)[:, 0]
        if kinds:
            rotation = packing.rotations[kinds[number].theta]
            key = self.ops.rotate(key, rotation)
            query = self.ops.rotate(query, rotation) if asking is None else query  # a first token's place is 0
        if packing.packed and window is None:
            attended = packing.packed[asking is not None](query, key, value)[0]
        elif packing.blocks and window is not None:
            attended = block_attention(query, key, value, packing.blocks[window])
        else:
            attended = _attention(query, key, value, packing.groups, window, first_only=asking is not None)
        if first is not None:
            hidden, attended = hidden[first], attended[first] if asking is None else attended
        return self._mlp(layer, self.linear(attended.flatten(1), *layer.out).add_(hidden))

    def _heads(self, hidden: Tensor, weights: LinearWeights) -> Tensor:
        """(M, h) -> (M, number of joined layers, H, D)."""
        states = self.linear(hidden, *weights)
        return states.view(len(hidden), -1, self.shape.heads, self.shape.hidden // self.shape.heads)

    def _mlp(self, layer: EncoderLayer, hidden: Tensor) -> Tensor:
        """Norms and MLP; ModernBERT's norm is before it, and half of `up` are gates: (M, h) -> (M, h)."""
        modern = bool(self.shape.attention)
        hidden = hidden if modern or layer.norm is None else layer.norm(hidden)
        for part in self.linear.split(hidden, self._mlp_rows):
            inner = self.linear(layer.mlp_norm(part) if modern else part, *layer.up)
            out = self.linear(self.ops.activate(inner, "gelu", gated=modern), *layer.down).add_(part)
            part.copy_(out if modern else layer.mlp_norm(out))
        return hidden

    def _scores(self, states: Tensor) -> Tensor:
        """Raw logits in float32, whatever the network's dtype: (P', h) -> (P',)."""
        for dense, activation, norm in self._head[:-1]:
            states = _ACTIVATIONS[activation](self.linear(states, *dense))
            states = states if norm is None else norm(states)
        return project(states, self._head[-1].dense)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, groups: EqualLengths, window: int | None, first_only: bool
) -> Tensor:
    """Attention within each sequence: three of (M, H, D) -> (M, H, D), zero in padding.

    `window`: tokens on either side that a token sees. `first_only`: of each sequence's first token, whose queries are
    (P', H, D) -> (P', H, D).
    """
    out = torch.zeros(query.shape, dtype=query.dtype, device=query.device)
    start = key_start = 0
    for count, key_length in groups:
        length = 1 if first_only else key_length
        rows, keys = slice(start, start + count * length), slice(key_start, key_start + count * key_length)
        q, k, v = (_batched(query[rows], length), *(_batched(states[keys], key_length) for states in (key, value)))
        attended = F.scaled_dot_product_attention(q, k, v) if window is None else _local(q, k, v, window)
        out[rows] = attended.transpose(1, 2).flatten(0, 1)
        start, key_start = rows.stop, keys.stop
    return out


def _local(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    """Attention to keys at most `window` away: (B, H, T, D), two of (B, H, L, D) -> (B, H, T, D), T is L or 1."""
    blocks, band = [], _band(window, query.dtype, query.device)
    for start in range(0, query.shape[2], _LOCAL_ROWS):
        rows = query[:, :, start : start + _LOCAL_ROWS]
        first, last = max(0, start - window), min(key.shape[2], start + rows.shape[2] + window)
        mask = band[: rows.shape[2], first - start + window : last - start + window]
        k, v = key[:, :, first:last], value[:, :, first:last]
        blocks.append(F.scaled_dot_product_attention(rows, k, v, attn_mask=mask))
    return torch.cat(blocks, dim=2)


@functools.lru_cache(maxsize=8)
def _band(window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """0 where a block's row sees one of its keys, of which `window` are before the first and after the last; -inf."""
    unseen = torch.full((_LOCAL_ROWS, _LOCAL_ROWS + 2 * window), -torch.inf, dtype=dtype, device=device)
    return unseen.tril(-1) + unseen.triu(2 * window + 1)


def _batched(states: Tensor, length: int) -> Tensor:
    """(B * L, H, D) -> (B, H, L, D), not copied."""
    return states.view(-1, length, *states.shape[1:]).transpose(1, 2)
