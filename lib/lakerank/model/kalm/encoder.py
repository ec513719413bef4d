"""The encoder of documents, and what the decoder's queries share of it: keys and values of pooled states.

A layer of the decoder attends to these and to its own tokens in one softmax, so that they are a document's prefix;
behind them is what all prompts begin with. A document's bits depend on it alone: see `engine`.

Shapes: M packed rows, hidden size h, H heads, G heads of keys and values, head dimension D.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lakerank.model.engine.attention import KeyValues, attend_alone, query_attention
from lakerank.model.engine.counters import Counters
from lakerank.model.engine.decoder import LayerAttention, PackedDecoder, Prefix
from lakerank.model.engine.device import to_device
from lakerank.model.engine.layout import Span, suffix_layout
from lakerank.model.engine.linear import BatchInvariantLinear, LinearWeights
from lakerank.model.inputs import EncodedInput


class PooledEncoder:
    """Prefixes of documents; to be used by one thread.

    `encoder` and `decoder` are the stacks of layers, `preamble` the token ids that every prompt begins with, `pooling`
    how many tokens make a state, `reach` how many a token sees to its left and right, itself included, where a layer
    slides a window.
    """

    def __init__(
        self, stacks: tuple[PackedDecoder, PackedDecoder], preamble: np.ndarray, pooling: int, reach: tuple[int, int]
    ) -> None:
        self._encoder, self._decoder = stacks
        self._preamble, self._pooling, self._reach = preamble, pooling, reach
        self._linear = BatchInvariantLinear()
        self.counters = Counters()

    @property
    def linear(self) -> BatchInvariantLinear:
        """What computes linear layers."""
        return self._linear

    @linear.setter
    def linear(self, linear: BatchInvariantLinear) -> None:
        self._linear = self._encoder.linear = linear

    def weights(self) -> Iterator[LinearWeights]:
        """Weights whose products must be batch-invariant."""
        return self._encoder.weights()

    def prefixes(self, documents: Sequence[EncodedInput]) -> list[Prefix]:
        """Prefixes of documents in one micro-batch; states that are known are not computed."""
        states = self._states(documents)
        sizes, shared = [len(rows) for rows in states], len(self._preamble)
        rows = torch.cat(states)
        padded = F.pad(rows, (0, 0, 0, self._linear.padded(len(rows)) - len(rows)))
        crossed = [
            [*zip(*(torch.split(part[: len(rows)], sizes) for part in layer), strict=True)]
            for layer in self._decoder.cross_key_values(padded)
        ]
        spans = [Span(number * shared, shared, number, size) for number, size in enumerate(sizes)]
        layout = suffix_layout(spans, self._decoder.heads // self._decoder.kv_heads, self._decoder.device)
        own: list[KeyValues] = []

        def attention(number: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            own.append((key, value))
            return query_attention(query, key, value, crossed[number], layout)

        self._run(self._decoder, [self._preamble] * len(sizes), attention)
        self.counters.flops += sum(self._decoder.flops.suffix(shared, size) for size in sizes)
        return [
            Prefix(
                tuple(
                    _joined(layer[number], part, slice(span.start, span.start + shared))
                    for layer, part in zip(crossed, own, strict=True)
                )
            )
            for number, span in enumerate(spans)
        ]

    def _states(self, documents: Sequence[EncodedInput]) -> list[Tensor]:
        """The pooled states (S, h) of each document; those computed are left in its `state`, where it has one."""
        unknown = [document for document in documents if document.state is None or not document.state.encoded]
        computed = iter(self._encode([document.token_ids for document in unknown]) if unknown else ())
        states = []
        for document in documents:
            kept = document.state
            if kept is not None and kept.encoded:
                values = torch.frombuffer(bytearray(kept.encoded), dtype=self._encoder.dtype)
                states.append(values.view(kept.rows, -1).to(self._encoder.device))
                continue
            rows = next(computed)
            states.append(rows)
            if kept is not None and bool(rows.isfinite().all()):
                kept.rows, kept.tokens, kept.truncated = len(rows), len(document.token_ids), document.truncated
                kept.encoded = rows.cpu().contiguous().view(torch.uint8).numpy().tobytes()
        return states

    def _encode(self, token_ids: Sequence[np.ndarray]) -> list[Tensor]:
        """The encoder's states of documents, mean-pooled."""
        ends = [0, *accumulate(map(len, token_ids))]
        masks = [self._window_mask(len(ids)) for ids in token_ids]

        def attention(number: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            slides = self._encoder.kinds[number] == "sliding_attention"
            out = torch.zeros_like(query)
            for (start, stop), mask in zip(pairwise(ends), masks, strict=True):
                rows = slice(start, stop)
                out[rows] = attend_alone(query[rows], key[rows], value[rows], mask if slides else None)
            return out.flatten(1)

        hidden = self._run(self._encoder, token_ids, attention)
        flops = self._encoder.flops
        self.counters.flops += sum(
            flops.layers * len(ids) * (flops.token_kv + flops.token_rest + len(ids) * flops.seen) for ids in token_ids
        )
        return [self._pooled(hidden[start:stop]) for start, stop in pairwise(ends)]

    def _run(self, stack: PackedDecoder, token_ids: Sequence[np.ndarray], attention: LayerAttention) -> Tensor:
        """Last hidden states of packed inputs, whose positions count from 0 each."""
        positions = np.concatenate([np.arange(len(ids)) for ids in token_ids])
        padding = self._linear.padded(len(positions)) - len(positions)
        self.counters.computed += len(positions) + padding
        self.counters.padding += padding
        ids, places = (
            to_device(np.pad(values, (0, padding)), stack.device) for values in (np.concatenate(token_ids), positions)
        )
        return stack.hidden(stack.embed(ids).rows, places[None], int(positions.max()) + 1, attention)

    def _window_mask(self, tokens: int) -> Tensor | None:
        """What each token sees through a window (L, L); None where that is all."""
        left, right = self._reach
        if tokens <= min(left, right):
            return None
        places = torch.arange(tokens, device=self._encoder.device)
        distance = places[:, None] - places
        return (distance < left) & (-distance < right)

    def _pooled(self, hidden: Tensor) -> Tensor:
        """Means of consecutive rows: (L, h) -> (S, h)."""
        size = self._pooling
        padded = F.pad(hidden, (0, 0, 0, -len(hidden) % size)).view(-1, size, hidden.shape[-1])
        counts = torch.full((len(padded), 1), size, device=hidden.device)
        counts[-1] = len(hidden) - size * (len(padded) - 1)
        return padded.sum(dim=1) / counts


def _joined(states: KeyValues, own: KeyValues, rows: slice) -> KeyValues:
    key, value = (torch.cat((first, second[rows])) for first, second in zip(states, own, strict=True))
    return key, value
