"""The decoder's forwards over packed rows: tokens of several documents or queries one after the other, unpadded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lakerank.model.engine.attention import KeyValues, document_attention, query_attention
from lakerank.model.engine.layout import PrefixLayout, SuffixLayout
from lakerank.model.engine.linear import RowProducts, rowwise
from lakerank.model.engine.rotation import RotaryTable, rotary_sections, rotate
from lakerank.model.engine.score_head import ReadOut

#: Rows whose inner layer (several times as wide as the hidden states) is in memory at once: no fewer than keep
#: the device busy.
INNER_ROWS_CPU = 2048
INNER_ROWS_GPU = 8192


class Norm:
    """The root mean square norm, with fewer passes over memory than transformers' own."""

    def __init__(self, module: Any) -> None:
        self._weight: Tensor = module.weight
        self._epsilon = float(module.variance_epsilon)

    def __call__(self, rows: Tensor) -> Tensor:
        """(M, h) -> (M, h); the mean of squares in float32."""
        wide = rows.float()
        size: Tensor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = (size.square_().div_(rows.shape[-1]) + self._epsilon).rsqrt_()
        normed: Tensor = (wide * scale).to(rows.dtype).mul_(self._weight)
        return normed


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer, products of the same input joined into one; queries and keys have norms or none."""

    norm: Norm
    query_key_value: tuple[Tensor, Tensor | None]
    query_norm: Norm | None
    key_norm: Norm | None
    out: tuple[Tensor, Tensor | None]
    inner_norm: Norm
    gate_up: tuple[Tensor, Tensor | None]
    down: tuple[Tensor, Tensor | None]
    activation: Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Embedded:
    """What goes into the first layer, `rows` (M, h), and what is added after each of the first few at `places` (V,).

    `deep`: visual features (V, h) for those layers (DeepStack); most networks have none.
    """

    rows: Tensor
    places: Tensor | None = None
    deep: tuple[Tensor, ...] = ()

    def add(self, number: int, hidden: Tensor) -> Tensor:
        """The hidden states that layer `number` left, (M, h), with its visual features."""
        if self.places is None or number >= len(self.deep):
            return hidden
        return hidden.index_add_(0, self.places, self.deep[number].to(hidden.dtype))


@dataclass(frozen=True, slots=True)
class Prefix:
    """What the queries of a document share: each layer's rotated keys and values, both (S, kv heads G, head dim D)."""

    layers: tuple[KeyValues, ...]

    @property
    def tokens(self) -> int:
        """S."""
        return len(self.layers[0][0])

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(part.nbytes for layer in self.layers for part in layer)

    def copy(self) -> Prefix:
        """A prefix that does not hold on to those it was computed beside."""
        return Prefix(tuple((key.clone(), value.clone()) for key, value in self.layers))


class PackedDecoder:
    """Prefixes of documents, and queries' logits on top of them. Without gradients; to be used by one thread."""

    def __init__(self, network: Any, read_out: ReadOut) -> None:
        text = network.config.get_text_config()
        decoder = getattr(network.model, "language_model", network.model)
        self.heads, self._groups = text.num_attention_heads, text.num_key_value_heads
        self.dim = decoder.layers[0].self_attn.head_dim
        self._layers = [_join_products(layer) for layer in decoder.layers]
        self._norm, self._embeddings = Norm(decoder.norm), decoder.embed_tokens
        self._read_out = read_out
        rotary = decoder.rotary_emb
        self._sections = rotary_sections(text.model_type, rotary.config.rope_parameters, self.dim // 2)
        dtype = decoder.embed_tokens.weight.dtype
        self._rotary = RotaryTable(rotary.inv_freq, rotary.attention_scaling, dtype)
        self._inner_rows = inner_rows(rotary.inv_freq.device)
        self.products = RowProducts()

    @property
    def repeats(self) -> int:
        """Query heads to one of keys and values."""
        return int(self.heads // self._groups)

    def weights(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The first layer's weights, which stand for all layers', and the read-out's."""
        layer = self._layers[0]
        yield from (layer.query_key_value, layer.out, layer.gate_up, layer.down)
        yield from self._read_out.weights()

    def embed(self, token_ids: Tensor, places: Tensor | None = None, visual: Tensor | None = None) -> Embedded:
        """Embeddings of tokens (M,), visual tokens put at `places` (V,).

        `visual` (V, h), or (V, (1 + n) * h) with features for the first n layers behind.
        """
        embeds: Tensor = self._embeddings(token_ids)
        if places is None or visual is None:
            return Embedded(embeds)
        first, *deep = torch.split(visual, embeds.shape[1], dim=1)
        return Embedded(embeds.index_copy(0, places, first.to(embeds.dtype)), places, tuple(deep))

    def prefixes(
        self, embedded: Embedded, positions: Tensor, end: int, lengths: Sequence[int], layout: PrefixLayout
    ) -> list[Prefix]:
        """Prefixes of packed documents: M rows, positions (3, M) below `end`.

        Nothing after the last layer's keys and values is computed: no query reads it.
        """
        rotation = self._rotary.look_up(positions, self._sections, end)
        layers: list[list[KeyValues]] = [[] for _ in lengths]
        hidden, last = embedded.rows, len(self._layers) - 1
        sizes = [*lengths, len(hidden) - sum(lengths)]
        for number, layer in enumerate(self._layers):
            normed = layer.norm(hidden)
            if number == last:
                key, value = self._keys_values(layer, normed, rotation)
            else:
                query, key, value = self._query_key_value(layer, normed, rotation)
            pieces = zip(torch.split(key, sizes), torch.split(value, sizes), strict=True)
            for states, piece in zip(layers, pieces, strict=False):
                states.append(piece)
            if number < last:
                hidden = self._after_attention(layer, hidden, document_attention(query, key, value, layout))
                hidden = embedded.add(number, hidden)
        return [Prefix(tuple(states)) for states in layers]

    def logits(
        self,
        embedded: Embedded,
        positions: Tensor,
        end: int,
        prefixes: Sequence[Prefix],
        layout: SuffixLayout,
        last_layout: SuffixLayout,
        last_rows: Tensor,
    ) -> Tensor:
        """Raw float32 logits of packed queries: M rows, positions (3, M) below `end`, -> (Q',).

        `last_rows` (Q',) are the rows of their last tokens; the last layer computes nothing else but keys and values.
        """
        rotation = self._rotary.look_up(positions, self._sections, end)
        hidden = embedded.rows
        for number, layer in enumerate(self._layers[:-1]):
            query, key, value = self._query_key_value(layer, layer.norm(hidden), rotation)
            states = [prefix.layers[number] for prefix in prefixes]
            hidden = self._after_attention(layer, hidden, query_attention(query, key, value, states, layout))
            hidden = embedded.add(number, hidden)
        layer = self._layers[-1]
        normed = layer.norm(hidden)
        key, value = self._keys_values(layer, normed, rotation)
        query = self._query(layer, normed[last_rows], rotation[:, last_rows])
        states = [prefix.layers[-1] for prefix in prefixes]
        attended = query_attention(query, key, value, states, last_layout)
        return self._read_out(self._norm(self._after_attention(layer, hidden[last_rows], attended)), self.products)

    def _query_key_value(self, layer: Layer, normed: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(M, h) -> rotated queries (M, H, D) and keys (M, G, D), values (M, G, D)."""
        states = self.products.linear(normed, *layer.query_key_value).view(len(normed), -1, self.dim)
        asking = states[:, : self.heads + self._groups]
        if layer.query_norm is not None and layer.key_norm is not None:
            asking = torch.cat((layer.query_norm(asking[:, : self.heads]), layer.key_norm(asking[:, self.heads :])), 1)
        query, key = torch.split(rotate(asking, rotation), [self.heads, self._groups], dim=1)
        return query, key, states[:, self.heads + self._groups :]

    def _keys_values(self, layer: Layer, normed: Tensor, rotation: Tensor) -> KeyValues:
        weight, bias = layer.query_key_value
        split = self.heads * self.dim
        states = self.products.linear(normed, weight[split:], None if bias is None else bias[split:])
        key, value = states.view(len(normed), -1, self.dim).chunk(2, dim=1)
        return rotate(key if layer.key_norm is None else layer.key_norm(key), rotation), value

    def _query(self, layer: Layer, normed: Tensor, rotation: Tensor) -> Tensor:
        weight, bias = layer.query_key_value
        split = self.heads * self.dim
        query = self.products.linear(normed, weight[:split], None if bias is None else bias[:split])
        query = query.view(len(normed), -1, self.dim)
        return rotate(query if layer.query_norm is None else layer.query_norm(query), rotation)

    def _after_attention(self, layer: Layer, hidden: Tensor, attended: Tensor) -> Tensor:
        """A layer's remaining half: (M, h), (M, H * D) -> (M, h)."""
        hidden = self.products.linear(attended, *layer.out).add_(hidden)
        for part in self.products.parts(hidden, self._inner_rows):
            part.add_(self._inner(layer, layer.inner_norm(part)))
        return hidden

    def _inner(self, layer: Layer, normed: Tensor) -> Tensor:
        gate, up = self.products.linear(normed, *layer.gate_up).chunk(2, dim=-1)
        return self.products.linear(rowwise(layer.activation, gate).mul_(up), *layer.down)


def inner_rows(device: torch.device) -> int:
    """Rows whose inner layer is computed at once."""
    return INNER_ROWS_CPU if device.type == "cpu" else INNER_ROWS_GPU


def _join_products(layer: Any) -> Layer:
    attention, inner = layer.self_attn, layer.mlp
    return Layer(
        norm=Norm(layer.input_layernorm),
        query_key_value=join([attention.q_proj, attention.k_proj, attention.v_proj]),
        query_norm=Norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
        key_norm=Norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
        out=(attention.o_proj.weight, attention.o_proj.bias),
        inner_norm=Norm(layer.post_attention_layernorm),
        gate_up=join([inner.gate_proj, inner.up_proj]),
        down=(inner.down_proj.weight, inner.down_proj.bias),
        activation=inner.act_fn,
    )


def join(linears: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """One weight and bias from several, which from then on are views of them: nothing is held twice."""
    weight = torch.cat([linear.weight.detach() for linear in linears])
    biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
    bias = torch.cat(biases) if biases else None
    start = 0
    for linear in linears:
        stop = start + linear.out_features
        linear.weight.data = weight[start:stop]
        if bias is not None:
            linear.bias.data = bias[start:stop]
        start = stop
    return weight, bias
