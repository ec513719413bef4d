"""Layouts of packed rows for attention: which sequences share a call, computed on the host."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from lakerank.model.engine.device import to_device

#: A document up to this many tokens shares its attention call with others whose length rounds up to the same.
SHARED_PREFIX = 128

#: Up to these lengths a query has one softmax over its document and itself. Beyond, the prefix is attended to in place.
PAIR_PREFIX = 64
PAIR_QUERY = 64

#: Lengths are rounded up to a multiple of the first up to a boundary, of the second beyond.
_SHORT_STEP, _LONG_STEP, _BOUNDARY = 16, 64, 64

#: The least rows of a block of attention through a window.
_WINDOW_ROWS = 64

#: A kernel for packed sequences that needs no padding: see `attention.varlen`.
Varlen = Callable[..., tuple[Tensor, Tensor]]


def padded_length(length: int) -> int:
    """The padded length of a sequence in a call of attention that it shares."""
    step = _SHORT_STEP if length <= _BOUNDARY else _LONG_STEP
    return -(-length // step) * step


@dataclass(frozen=True, slots=True)
class Bucket:
    """Sequences that share a call: its input are rows `index` (B, T); of its output, flat, `take` go to `rows`.

    Their own keys are rows `own_index` (B, L); `mask` is that of the scores. `prefix_index` (B, S) are rows of the
    layout's documents, concatenated; None for attention to own keys alone.
    """

    index: Tensor
    take: Tensor
    rows: Tensor
    own_index: Tensor
    mask: Tensor | None = None
    prefix_index: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Packed:
    """Sequences for one call of a kernel, which end at `cu_q` among queries and at `cu_k` among keys.

    Both (n + 1,) int32, from 0; `max_q` and `max_k` are the most of one sequence.
    """

    kernel: Varlen
    cu_q: Tensor
    cu_k: Tensor
    max_q: int
    max_k: int
    causal: bool

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """(M, H, D), two of (N, G, D) -> (M, H, D) and log-sum-exps (M, H) float32."""
        sizes, scale = (self.max_q, self.max_k), query.shape[-1] ** -0.5
        return self.kernel(query, key, value, self.cu_q, self.cu_k, *sizes, self.causal, scale)


#: Packed queries in two calls of a kernel: on their own keys, and on their documents', one after the other.
PackedSuffixes = tuple[Packed, Packed]


@dataclass(frozen=True, slots=True)
class PrefixLayout:
    """Packed documents: those `alone` in a call as (start, stop), the others in buckets."""

    alone: tuple[tuple[int, int], ...]
    buckets: tuple[Bucket, ...]


@dataclass(frozen=True, slots=True)
class SuffixLayout:
    """Packed queries. `pairs` have one softmax; the others attend to their `own` keys and to prefixes separately.

    `documents`: numbers of the prefixes of `pairs`. `spans`: a prefix's number, and (start, stop) of its queries' rows.
    """

    pairs: tuple[Bucket, ...]
    documents: tuple[int, ...]
    own: tuple[Bucket, ...]
    spans: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Span:
    """A query among packed rows: its first row and length, and its document's number and length."""

    start: int
    length: int
    document: int
    prefix: int

    @property
    def short(self) -> bool:
        """Whether it has one softmax over its document and itself."""
        return self.length <= PAIR_QUERY and self.prefix <= PAIR_PREFIX


@dataclass(frozen=True, slots=True)
class Layouts:
    """Makes layouts for a device and its kernel, if any; `repeats` heads share keys; `block`: see `suffix_layout`."""

    device: torch.device
    repeats: int
    varlen: Varlen | None = None
    block: int | None = None

    def documents(self, lengths: Sequence[int], rows: int) -> PrefixLayout | Packed:
        """That of packed documents of these lengths, and padding up to `rows`."""
        if self.varlen is None:
            return prefix_layout(lengths, self.device)
        return packed_rows(self.varlen, lengths, rows, self.device, causal=True)

    def queries(self, spans: Sequence[Span], rows: int, last_only: bool = False) -> SuffixLayout | PackedSuffixes:
        """That of packed queries, and padding up to `rows`; see `suffix_layout`. Documents are in their order."""
        if self.varlen is None:
            return suffix_layout(spans, self.repeats, self.device, last_only, self.block)
        lengths = [span.length for span in spans]
        asking = [1] * len(spans) if last_only else [*lengths]
        asking[-1] += rows - sum(asking)  # padding, with the last query
        sizes = {span.document: span.prefix for span in spans}
        on_document = dict.fromkeys(sizes, 0)
        for span, count in zip(spans, asking, strict=True):
            on_document[span.document] += count
        if last_only:  # each sees all of its query
            own = packed(self.varlen, asking, lengths, self.device)
        else:
            own = packed_rows(self.varlen, lengths, rows, self.device, causal=True)
        return own, packed(self.varlen, [*on_document.values()], [*sizes.values()], self.device)


def packed(
    kernel: Varlen, rows: Sequence[int], keys: Sequence[int], device: torch.device, causal: bool = False
) -> Packed:
    """The layout of sequences of so many rows, and as many or other numbers of keys, for one call of a kernel."""
    ends = to_device(np.array([[0, *accumulate(counts)] for counts in (rows, keys)], dtype=np.int32), device)
    return Packed(kernel, ends[0], ends[1], max(rows), max(keys), causal)


def packed_rows(
    kernel: Varlen, lengths: Sequence[int], rows: int, device: torch.device, causal: bool = False
) -> Packed:
    """As `packed`, of sequences on themselves; what is left of all `rows`, padding, is a sequence, too."""
    padding = rows - sum(lengths)
    every = [*lengths, padding] if padding else lengths
    return packed(kernel, every, every, device, causal)


def window_blocks(lengths: Sequence[int], before: int, after: int, device: torch.device) -> Bucket:
    """Blocks of rows of packed sequences, with the keys that any of them sees; `mask` is true where one is seen.

    A token sees so many tokens before its own and after. `own_index` repeats a row where a sequence has none.
    """
    size = max(_WINDOW_ROWS, (before + after) // 2)
    spans = [
        (start + first, min(size, length - first), start, start + length)
        for start, length in zip(accumulate([0, *lengths[:-1]]), lengths, strict=True)
        for first in range(0, length, size)
    ]
    index, take, rows = _bucket([span[:2] for span in spans], size, device)
    firsts, _, starts, stops = np.array(spans, dtype=np.int64).T[:, :, None]
    places = firsts - before + np.arange(size + before + after)[None]  # (B, S)
    distance = np.arange(places.shape[1])[None] - before - np.arange(size)[:, None]  # (T, S)
    seen = ((places >= starts) & (places < stops))[:, None] & (distance >= -before) & (distance <= after)
    keys = to_device(np.clip(places, starts, stops - 1), device)
    return Bucket(index, take, rows, keys, to_device(seen[:, None], device))


def prefix_layout(lengths: Sequence[int], device: torch.device) -> PrefixLayout:
    """The layout of packed documents of these lengths, for a device without a kernel for all of them."""
    starts = np.cumsum([0, *lengths])
    alone: list[tuple[int, int]] = []
    shared: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for start, length in zip(starts.tolist(), lengths, strict=False):
        if length > SHARED_PREFIX:
            alone.append((start, start + length))
        else:
            shared[padded_length(length)].append((start, length))
    buckets = [_bucket(members, size, device) for size, members in sorted(shared.items())]
    return PrefixLayout(tuple(alone), tuple(Bucket(*bucket, bucket[0]) for bucket in buckets))


def suffix_layout(
    spans: Sequence[Span], repeats: int, device: torch.device, last_only: bool = False, block: int | None = None
) -> SuffixLayout:
    """The layout of packed queries, `repeats` heads to one of keys; those of a document and kind are adjacent.

    `last_only`: only the last token of each query attends, in a row of its own, in the order of `spans`. `block`: a
    longer query attends alone, so many rows at a time, each over the keys up to its own: scores of all rows at once
    would grow with the square of its length.
    """
    suffixes = _Suffixes(spans, repeats, device, last_only)
    pairs: dict[tuple[int, int], list[Span]] = defaultdict(list)
    own: dict[int, list[Span]] = defaultdict(list)
    blocks: list[Bucket] = []
    for span in spans:
        if span.short:
            pairs[padded_length(span.length), padded_length(span.prefix)].append(span)
        elif last_only or block is None or span.length <= block:
            own[padded_length(span.length)].append(span)
        else:
            blocks += suffixes.blocks(span, block)
    documents = tuple(sorted({span.document for span in spans if span.short}))
    return SuffixLayout(
        pairs=tuple(suffixes.bucket(pairs[sizes], *sizes, documents) for sizes in sorted(pairs)),
        documents=documents,
        own=(*(suffixes.bucket(own[size], size) for size in sorted(own)), *blocks),
        spans=tuple(suffixes.document_spans()),
    )


class _Suffixes:
    """Builds the parts of a SuffixLayout."""

    def __init__(self, spans: Sequence[Span], repeats: int, device: torch.device, last_only: bool) -> None:
        self._repeats, self._device, self._last_only = repeats, device, last_only
        self._spans = spans
        self._rows = {span: number for number, span in enumerate(spans)}

    def _attending(self, span: Span) -> tuple[int, int]:
        """First row and number of the rows that attend."""
        return (self._rows[span], 1) if self._last_only else (span.start, span.length)

    def bucket(self, spans: Sequence[Span], size: int, prefix: int = 0, documents: Sequence[int] = ()) -> Bucket:
        """Queries padded to `size` tokens, on prefixes padded to `prefix` or, if 0, on their own keys alone."""
        index, take, rows = _bucket([*map(self._attending, spans)], 1 if self._last_only else size, self._device)
        own_index, padding = _padded_rows([span.start for span in spans], [span.length for span in spans], size)
        causal = np.triu(np.ones((1, size, size), dtype=bool), 1)  # one for all
        masked = padding[:, None] if self._last_only else causal  # (B or 1, T, L)
        prefix_index: Tensor | None = None
        if prefix:
            sizes = {span.document: span.prefix for span in self._spans}
            ends = np.cumsum([0, *(sizes[number] for number in documents)]).tolist()
            offsets = dict(zip(documents, ends, strict=False))  # of each prefix among those of all documents
            firsts, counts = [offsets[span.document] for span in spans], [span.prefix for span in spans]
            prefix_rows, padding = _padded_rows(firsts, counts, prefix)
            masked = np.broadcast_to(masked, (len(spans), *masked.shape[1:]))
            masked = np.concatenate((np.broadcast_to(padding[:, None], (*masked.shape[:2], prefix)), masked), axis=-1)
            prefix_index = to_device(prefix_rows, self._device)
        mask = self._mask(masked)[:, None]  # (B, 1, T * R, S + L)
        return Bucket(index, take, rows, to_device(own_index, self._device), mask, prefix_index)

    def blocks(self, span: Span, block: int) -> Iterator[Bucket]:
        """The rows of a long query, block by block."""
        for first in range(0, span.length, block):
            last = min(first + block, span.length)
            rows = torch.arange(span.start + first, span.start + last, device=self._device)
            keys = torch.arange(span.start, span.start + last, device=self._device)
            masked = np.triu(np.ones((1, last - first, last), dtype=bool), first + 1)  # (1, T, L)
            take = torch.arange(last - first, device=self._device)
            yield Bucket(rows[None], take, rows, keys[None], self._mask(masked)[:, None])

    def document_spans(self) -> list[tuple[int, int, int]]:
        """(document, start, stop) of the attending rows of each document's long pairs."""
        merged: list[tuple[int, int, int]] = []
        for span in (span for span in self._spans if not span.short):
            start, count = self._attending(span)
            stop = start + count
            if merged and merged[-1][0] == span.document and merged[-1][2] == start:
                start = merged.pop()[1]
            merged.append((span.document, start, stop))
        return merged

    def _mask(self, masked: np.ndarray) -> Tensor:
        """What is added to scores, each row for all heads of its keys: (B, T, L) bool -> (B, T * R, L)."""
        mask = np.where(masked, np.float32("-inf"), np.float32(0))
        return to_device(np.repeat(mask, self._repeats, axis=1), self._device)


def _bucket(members: Sequence[tuple[int, int]], size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """index, take and rows of sequences given as (start, length)."""
    starts, lengths = zip(*members, strict=True)
    index, padding = _padded_rows(starts, lengths, size)
    return to_device(index, device), to_device(np.flatnonzero(~padding), device), to_device(index[~padding], device)


def _padded_rows(starts: Sequence[int], lengths: Sequence[int], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of sequences padded to `size` with their last one (B, size), and which of them are padding."""
    firsts, counts = (np.array(values, dtype=np.int64)[:, None] for values in (starts, lengths))
    places = np.arange(size)[None]
    return firsts + np.minimum(places, counts - 1), places >= counts
