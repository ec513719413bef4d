"""jina-reranker-v3's scores: cosines of projected states at each document's token and at the query's.

A list is one prompt, or several blocks whose query vectors are averaged. Prompts are packed rows, each with the bits
that it has alone; of a prompt only the projected states are kept. Sources: as in `config`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lakerank.model.engine.attention import attend_alone, document_attention
from lakerank.model.engine.budget import free_bytes, micro_batches
from lakerank.model.engine.decoder import PackedDecoder
from lakerank.model.engine.device import to_device
from lakerank.model.engine.engine import DocumentMajorEngine
from lakerank.model.engine.linear import BatchInvariantLinear, LinearWeights
from lakerank.model.inputs import DocumentQueries, EncodedInput, RejectedInput
from lakerank.model.listwise.tokenize import EncodedList, ListTokenizer
from lakerank.records import RejectReason

#: A cosine of one is no finite logit.
_MOST = 1 - 2.0**-24

#: Share of the free memory that one prompt may take.
_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Projector:
    """The head: two linear layers without biases, ReLU between them, in float32."""

    first: LinearWeights
    second: LinearWeights

    @property
    def flops(self) -> float:
        """Operations a state, two a multiply-add."""
        return 2.0 * (self.first.weight.numel() + self.second.weight.numel())

    def weights(self) -> Iterator[LinearWeights]:
        """Weights of its matrix products."""
        yield from (self.first, self.second)

    def __call__(self, hidden: Tensor, linear: BatchInvariantLinear) -> Tensor:
        """(Q, h) -> (Q, p)."""
        return linear(F.relu(linear(hidden.float(), *self.first)), *self.second)


@dataclass(frozen=True, slots=True)
class Blocks:
    """What a prompt holds: `documents` at most, or until the next document might not fit into `tokens`.

    `token_bytes`: memory of a token while it is computed.
    """

    documents: int
    tokens: int
    token_bytes: int


class CosineEngine:
    """Scores lists, and pairs as lists of one, on one device; to be used by one thread.

    `decoder`: the engine's. `windows`: how many tokens a token of each layer sees; None: all before it.
    logit = 2 artanh(cosine), so that relevance = (1 + cosine) / 2.
    """

    def __init__(
        self,
        engine: DocumentMajorEngine,
        decoder: PackedDecoder,
        tokenizer: ListTokenizer,
        windows: Sequence[int | None],
        blocks: Blocks,
    ) -> None:
        self._engine, self._decoder, self._tokenizer = engine, decoder, tokenizer
        self._windows, self._blocks, self.batcher = windows, blocks, engine.batcher
        (self._document_token,) = tokenizer.ids("<|embed_token|>")

    @property
    def group_tokens(self) -> int:
        """Tokens of the lists to score together."""
        return self._engine.group_tokens

    def score(self, groups: Sequence[DocumentQueries]) -> list[list[float | RejectedInput]]:
        """The logit of each group's queries, a list of one document each."""
        scored = iter(self.score_lists([EncodedList(q, (g.document,)) for g in groups for q in g.queries]))
        results = (islice(scored, len(group.queries)) for group in groups)
        return [[one if isinstance(one, RejectedInput) else float(one[0]) for one in part] for part in results]

    def score_lists(self, lists: Sequence[EncodedList]) -> list[np.ndarray | RejectedInput]:
        """Logits (N,) of each list's documents; a reject where a block does not fit into memory."""
        blocks = [[*self._cut(each)] for each in lists]
        prompts = [
            self._tokenizer.prompt(each.query, block)
            for each, several in zip(lists, blocks, strict=True)
            for block in several
        ]
        vectors, counters = iter(self._vectors(prompts)), self.batcher.counters
        counters.documents += sum(len(each.documents) for each in lists)
        counters.pairs += sum(len(each.documents) for each in lists)
        counters.pairwise += sum(len(prompt.token_ids) for prompt in prompts)
        return [_logits([*islice(vectors, len(several))]) for several in blocks]

    def _cut(self, each: EncodedList) -> Iterator[list[EncodedInput]]:
        """Blocks of a list, cut as published: by its texts' tokens alone."""
        query, block = len(each.query.token_ids), list[EncodedInput]()
        room = whole = self._blocks.tokens - 2 * min(query, self._tokenizer.query_limit)
        for document in each.documents:
            block.append(document)
            room -= min(len(document.token_ids), self._tokenizer.document_limit)
            if len(block) >= self._blocks.documents or room <= self._tokenizer.document_limit:
                yield block
                room, block = whole, []
        if block:
            yield block

    def _vectors(self, prompts: Sequence[EncodedInput]) -> Iterator[np.ndarray | RejectedInput]:
        """Vectors (D + 1, p) of each prompt's documents and its query."""
        most = int(_SHARE * free_bytes(self._decoder.device)) // self._blocks.token_bytes
        budget = self.batcher.budget

        def smaller_batches_help(part: Sequence[EncodedInput]) -> bool:
            return len(part) > 1 and max(len(each.token_ids) for each in part) <= budget.tokens

        fitting = [prompt for prompt in prompts if len(prompt.token_ids) <= most]
        computed = iter(self.batcher.run(self._states, fitting, smaller_batches_help=smaller_batches_help))
        for prompt in prompts:
            size = len(prompt.token_ids)
            vectors = next(computed) if size <= most else None
            advice = "listwise.window or model.max_length would make blocks smaller, and other scores"
            detail = f"a prompt of {size} tokens; {most} fit into free memory: {advice}"
            yield RejectedInput(RejectReason.OUT_OF_MEMORY, detail) if vectors is None else vectors

    @torch.inference_mode()
    def _states(self, prompts: Sequence[EncodedInput]) -> list[np.ndarray]:
        sizes = [len(prompt.token_ids) for prompt in prompts]
        parts = micro_batches(prompts, sizes, self.batcher.budget.tokens)
        return [vectors for part in [*map(self._forward, parts)] for vectors in part]

    def _forward(self, prompts: Sequence[EncodedInput]) -> list[np.ndarray]:
        """Projected states of the prompts of a micro-batch."""
        decoder, lengths = self._decoder, [len(prompt.token_ids) for prompt in prompts]
        ends = [0, *accumulate(lengths)]
        with self.batcher.timer.stage("prefix_s"):
            embeddings, positions = self._engine.embed(prompts, [0] * len(prompts), ())
            layout = self._engine.prefix_layout(lengths, len(embeddings.rows))

            def attention(number: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
                window = self._windows[number]
                if window is None:
                    return document_attention(query, key, value, layout)
                out = torch.zeros_like(query)
                for rows in (slice(*span) for span in pairwise(ends)):
                    out[rows] = attend_window(query[rows], key[rows], value[rows], window)
                return out.flatten(1)

            hidden = decoder.hidden(embeddings, positions, max(lengths), attention)
            marks = [np.flatnonzero(prompt.token_ids == self._document_token) for prompt in prompts]
            rows = [np.append(mark, length - 1) + end for mark, length, end in zip(marks, lengths, ends, strict=False)]
            taken = np.concatenate(rows)
            padded = np.pad(taken, (0, decoder.linear.padded(len(taken)) - len(taken)))
            vectors = decoder.head(hidden[to_device(padded, decoder.device)], decoder.linear)[: len(taken)]
        self.batcher.counters.flops += sum(map(decoder.flops.prefix, lengths))
        return np.split(vectors.cpu().numpy().astype(np.float64), np.cumsum([*map(len, rows)])[:-1])


def attend_window(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    """Causal attention of one sequence through a window, block by block: (S, H, D), two of (S, G, D) -> (S, H, D)."""
    parts = []
    for first in range(0, len(query), window):
        start, stop = max(0, first - window + 1), min(first + window, len(query))
        rows = torch.arange(first, stop, device=query.device)[:, None]
        keys = torch.arange(start, stop, device=query.device)
        seen = (keys <= rows) & (keys > rows - window)
        parts.append(attend_alone(query[first:stop], key[start:stop], value[start:stop], seen))
    return torch.cat(parts)


def _logits(blocks: Sequence[np.ndarray | RejectedInput]) -> np.ndarray | RejectedInput:
    """Logits (N,) of a list from the vectors of its blocks."""
    vectors = []
    for block in blocks:
        if isinstance(block, RejectedInput):
            return block
        vectors.append(block)
    query = vectors[0][-1]
    if len(vectors) > 1:  # a block counts by its best document; by next to nothing where that is the query's opposite
        weights = [max((1 + _cosines(block[:-1], block[-1]).max()) / 2, 1e-9) for block in vectors]
        query = np.average([block[-1] for block in vectors], axis=0, weights=weights)
    cosines = _cosines(np.concatenate([block[:-1] for block in vectors]), query)
    return np.asarray(2 * np.arctanh(np.clip(cosines, -_MOST, _MOST)))


def _cosines(rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    """(N, p), (p,) -> (N,); NaN where a vector is zero."""
    with np.errstate(invalid="ignore"):
        return np.asarray((rows * query).sum(axis=1) / (np.linalg.norm(query) * np.linalg.norm(rows, axis=1)))
