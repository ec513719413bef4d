"""The encoder of documents, and what the decoder's queries share of it: keys and values of pooled states.

A layer of the decoder attends to these and to its own tokens in one softmax, so that they are a document's prefix;
behind them is what the prompts of its queries begin with. A document's bits depend on it alone: see `engine`.

Shapes: M packed rows, hidden size h, H heads, G heads of keys and values, head dimension D, S pooled states.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lakerank.model.engine.attention import attend_alone, block_attention, query_attention
from lakerank.model.engine.counters import Counters
from lakerank.model.engine.decoder import Embeddings, PackedDecoder, Prefix, join_prefixes, split_prefixes
from lakerank.model.engine.device import to_device
from lakerank.model.engine.layout import Layouts, Span, packed_rows, window_blocks
from lakerank.model.engine.linear import LinearWeights
from lakerank.model.inputs import EncodedInput


class PooledEncoder:
    """Prefixes of documents; to be used by one thread.

    `encoder` and `decoder` are stacks of layers, `pooling` is how many tokens make a state, `reach` how many a token
    sees to its left and right, itself included, where a layer slides a window.
    """

    def __init__(self, encoder: PackedDecoder, decoder: PackedDecoder, pooling: int, reach: tuple[int, int]) -> None:
        self._encoder, self._decoder, self._pooling, self._reach = encoder, decoder, pooling, reach
        self.heads = encoder.heads, encoder.kv_heads, encoder.head_dim
        self.layouts = Layouts(decoder.device, decoder.heads // decoder.kv_heads)

    def weights(self) -> Iterator[LinearWeights]:
        """Weights whose products must be batch-invariant."""
        return self._encoder.weights()

    def prefixes(self, documents: Sequence[EncodedInput], counters: Counters) -> list[Prefix]:
        """Prefixes of documents in one micro-batch; states that are known are not computed."""
        decoder = self._decoder
        self._encoder.linear = decoder.linear
        states = self._states(documents, counters)
        rows, sizes = torch.cat(states), [*map(len, states)]
        padding = decoder.linear.padded(len(rows)) - len(rows)
        whole = decoder.cross_key_values(F.pad(rows, (0, 0, 0, padding)), len(rows))
        crossed = split_prefixes(whole, sizes)
        prompts = [document.preamble.token_ids for document in documents if document.preamble]
        starts = [0, *accumulate(map(len, prompts))]
        spans = [Span(a, len(prompt), n, sizes[n]) for n, (a, prompt) in enumerate(zip(starts, prompts, strict=False))]
        embedded = self._packed(decoder, prompts, counters)
        layout = self.layouts.queries(spans, len(embedded[0].rows))
        shared = [whole] if isinstance(layout, tuple) else crossed
        counters.flops += sum(decoder.flops.suffix(span.length, span.prefix) for span in spans)

        def attention(number: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return query_attention(query, key, value, [prefix[number] for prefix in shared], layout)

        own = decoder.prefixes(*embedded, [*map(len, prompts)], attention)
        return [*map(join_prefixes, zip(crossed, own, strict=True))]

    def _states(self, documents: Sequence[EncodedInput], counters: Counters) -> list[Tensor]:
        """The pooled states (S, h) of each document; those computed are left in its `state`, where it has one."""
        known = [bool(document.state and document.state.encoded) for document in documents]
        unknown = [document.token_ids for document, kept in zip(documents, known, strict=True) if not kept]
        computed = iter(self._encode(unknown, counters) if unknown else ())
        states = []
        for document, kept in zip(documents, known, strict=True):
            state = document.state
            if state is not None and kept:
                stored = torch.frombuffer(bytearray(state.encoded), dtype=self._encoder.dtype)
                states.append(stored.view(-1, self._encoder.hidden_size).to(self._encoder.device))
                continue
            states.append(next(computed))
            if state is not None and bool(states[-1].isfinite().all()):
                state.tokens, state.truncated = len(document.token_ids), document.truncated
                state.encoded = states[-1].cpu().contiguous().view(torch.uint8).numpy().tobytes()
        return states

    def _encode(self, token_ids: Sequence[np.ndarray], counters: Counters) -> Iterator[Tensor]:
        """The encoder's states of documents, each mean-pooled."""
        ends = [0, *accumulate(map(len, token_ids))]
        embedded = self._packed(self._encoder, token_ids, counters)
        lengths, device = [*map(len, token_ids)], self._encoder.device
        masks, every, blocks = [], None, None
        if self.layouts.varlen is None:
            masks = [self._window_mask(length) for length in lengths]
        else:
            every = packed_rows(self.layouts.varlen, lengths, len(embedded[0].rows), device)
            left, right = self._reach
            blocks = window_blocks(lengths, left - 1, right - 1, device) if max(lengths) > min(self._reach) else None

        def attention(number: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            slides = self._encoder.kinds[number] == "sliding_attention"
            if slides and blocks is not None:
                return block_attention(query, key, value, blocks).flatten(1)
            if every is not None:
                return every(query, key, value)[0].flatten(1)
            out = torch.zeros_like(query)
            for (start, stop), mask in zip(pairwise(ends), masks, strict=True):
                rows = slice(start, stop)
                out[rows] = attend_alone(query[rows], key[rows], value[rows], mask if slides else None)
            return out.flatten(1)

        hidden = self._encoder.hidden(*embedded, attention)
        counters.flops += sum(2 * self._encoder.flops.prefix(len(ids)) for ids in token_ids)
        return (self._pooled(hidden[start:stop]) for start, stop in pairwise(ends))

    @staticmethod
    def _packed(
        stack: PackedDecoder, token_ids: Sequence[np.ndarray], counters: Counters
    ) -> tuple[Embeddings, Tensor, int]:
        """Embeddings of packed inputs, their positions (1, M), which count from 0 each, and the end of these."""
        positions = np.concatenate([np.arange(len(ids)) for ids in token_ids])
        padding = stack.linear.padded(len(positions)) - len(positions)
        counters.computed += len(positions) + padding
        counters.padding += padding
        ids, places = (np.pad(values, (0, padding)) for values in (np.concatenate(token_ids), positions))
        embeddings = stack.embed(to_device(ids, stack.device))
        return embeddings, to_device(places, stack.device)[None], int(positions.max()) + 1

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
