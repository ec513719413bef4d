"""jina-reranker-v3's scores: cosines of projected states at each document's token and at the query's.

A list is one prompt, or several blocks whose query vectors are averaged. Prompts are packed rows, each with the bits
that it has alone; of a prompt only the projected states are kept. Sources: as in `config`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lakerank.model.engine.attention import block_attention, document_attention
from lakerank.model.engine.budget import free_bytes, micro_batches
from lakerank.model.engine.decoder import PackedDecoder
from lakerank.model.engine.device import to_device
from lakerank.model.engine.engine import DocumentMajorEngine
from lakerank.model.engine.layout import window_blocks
from lakerank.model.inputs import DocumentQueries, EncodedInput, RejectedInput
from lakerank.model.listwise.tokenize import EncodedList, ListTokenizer
from lakerank.model.registry import CheckpointIdentity
from lakerank.records import RejectReason

#: A cosine of one is no finite logit.
_MOST = 1 - 2.0**-24

#: What a token takes of memory in a layer, in hidden states, and the share of free memory that a prompt may take.
_STATES, _SHARE = 48, 0.8


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
        identity: CheckpointIdentity,
    ) -> None:
        self._engine, self._decoder, self._tokenizer, self._windows = engine, decoder, tokenizer, windows
        self._length, listwise = identity.limits.max_length, identity.listwise
        self._most_documents = (listwise and listwise.window) or 1
        (self._document_token,) = tokenizer.ids("<|embed_token|>")
        self.batcher = engine.batcher

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
        prompts = [[self._tokenizer.prompt(each.query, block) for block in self._blocks(each)] for each in lists]
        vectors = iter(self._vectors([prompt for blocks in prompts for prompt in blocks]))
        self.batcher.counters.pairs += sum(len(each.documents) for each in lists)
        return [_logits([*islice(vectors, len(blocks))]) for blocks in prompts]

    def _blocks(self, each: EncodedList) -> Iterator[list[EncodedInput]]:
        """A list cut as published: by the number of documents, and where the next one might not fit."""
        block, (of_query, *sizes) = list[EncodedInput](), self._tokenizer.text_tokens(each)
        room = whole = self._length - 2 * of_query
        for document, size in zip(each.documents, sizes, strict=True):
            block.append(document)
            room -= size
            if len(block) >= self._most_documents or room <= self._tokenizer.document_limit:
                yield block
                room, block = whole, []
        if block:
            yield block

    def _vectors(self, prompts: Sequence[EncodedInput]) -> Iterator[np.ndarray | RejectedInput]:
        """Vectors (D + 1, p) of each prompt's documents and its query."""
        token_bytes = _STATES * self._decoder.hidden_size * self._decoder.dtype.itemsize
        most = int(_SHARE * free_bytes(self._decoder.device)) // token_bytes
        fitting = [prompt for prompt in prompts if len(prompt.token_ids) <= most]
        computed = iter(self.batcher.run(self._states, fitting, smaller_batches_help=lambda part: False))
        for size in (len(prompt.token_ids) for prompt in prompts):
            vectors = next(computed) if size <= most else None
            advice = "listwise.window or model.max_length would make smaller blocks of the list, and other scores"
            detail = f"a prompt of {size} tokens, and memory for {most}: {advice}"
            yield RejectedInput(RejectReason.OUT_OF_MEMORY, detail) if vectors is None else vectors

    @torch.inference_mode()
    def _states(self, prompts: Sequence[EncodedInput]) -> list[np.ndarray]:
        sizes = [len(prompt.token_ids) for prompt in prompts]
        self.batcher.counters.pairwise += sum(sizes)
        self.batcher.counters.flops += sum(map(self._decoder.flops.prefix, sizes))
        parts = micro_batches(prompts, sizes, self.batcher.budget.tokens)
        return [vectors for part in parts for vectors in self._forward(part)]

    def _forward(self, prompts: Sequence[EncodedInput]) -> list[np.ndarray]:
        """Projected states of the prompts of a micro-batch."""
        decoder, lengths = self._decoder, [len(prompt.token_ids) for prompt in prompts]
        with self.batcher.timer.stage("prefix_s"):
            embeddings, positions = self._engine.embed(prompts, [0] * len(prompts), ())
            layout = self._engine.layouts.documents(lengths, len(embeddings.rows))
            windows = {window for window in self._windows if window is not None}
            blocks = {window: window_blocks(lengths, window - 1, 0, decoder.device) for window in windows}

            def attention(number: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
                if (window := self._windows[number]) is None:
                    return document_attention(query, key, value, layout)
                return block_attention(query, key, value, blocks[window]).flatten(1)

            hidden = decoder.hidden(embeddings, positions, max(lengths), attention)
            marks = [np.flatnonzero(prompt.token_ids[:-1] == self._document_token) for prompt in prompts]
            ends = [*accumulate(lengths)]
            rows = [np.append(m + end - n, end - 1) for m, end, n in zip(marks, ends, lengths, strict=True)]
            count = sum(map(len, rows))
            taken = np.pad(np.concatenate(rows), (0, decoder.linear.padded(count) - count))
            vectors = decoder.head(hidden[to_device(taken, decoder.device)], decoder.linear)[:count]
        return np.split(vectors.cpu().numpy().astype(np.float64), np.cumsum([*map(len, rows)])[:-1])


def _logits(blocks: Sequence[Any]) -> np.ndarray | RejectedInput:
    """Logits (N,) of a list from the vectors of its blocks, or the reject of one."""
    for block in blocks:
        if isinstance(block, RejectedInput):
            return block
    query = blocks[0][-1]
    if len(blocks) > 1:  # a block counts by its best document, by next to nothing if that is the query's opposite
        weights = [max((1 + _cosines(block[:-1], block[-1]).max()) / 2, 1e-9) for block in blocks]
        query = np.average([block[-1] for block in blocks], axis=0, weights=weights)
    cosines = _cosines(np.concatenate([block[:-1] for block in blocks]), query)
    return np.asarray(2 * np.arctanh(np.clip(cosines, -_MOST, _MOST)))


def _cosines(rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    """(N, p), (p,) -> (N,); NaN where a vector is zero."""
    with np.errstate(invalid="ignore"):
        return np.asarray((rows * query).sum(axis=1) / (np.linalg.norm(query) * np.linalg.norm(rows, axis=1)))
