"""Where packed rows lie and which attention they take part in, worked out on the host before a tensor is made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lakerank.model.engine.device import to_device

#: A document up to this many tokens shares its attention call with others whose length rounds up to the same.
SHARED_PREFIX = 128

#: Up to these lengths a query sees its document and itself in one softmax. Beyond, the prefix is attended to in place.
PAIR_PREFIX = 64
PAIR_QUERY = 64

#: Lengths are rounded up to a multiple of the first up to a boundary, of the second beyond.
_SHORT_STEP, _LONG_STEP, _BOUNDARY = 16, 64, 64

#: Causal attention of packed sequences, each (M, H, D), by a kernel that needs no padding.
Varlen = Callable[[Tensor, Tensor, Tensor], Tensor]


def rounded(length: int) -> int:
    """The length at which a sequence takes part in attention beside others."""
    step = _SHORT_STEP if length <= _BOUNDARY else _LONG_STEP
    return -(-length // step) * step


@dataclass(frozen=True, slots=True)
class Bucket:
    """Sequences that share a call: rows `index` (B, T) go in; of what comes out, flat, `take` belongs at `rows`."""

    index: Tensor
    take: Tensor
    rows: Tensor


@dataclass(frozen=True, slots=True)
class QueryBucket:
    """Queries that share a call: as Bucket, their own keys' rows `own_index` (B, L), and a mask added to the scores.

    `prefix_index` (B, S) points into the rows of the layout's documents, one after the other; None for attention to
    a query's own keys alone.
    """

    index: Tensor
    take: Tensor
    rows: Tensor
    own_index: Tensor
    mask: Tensor
    prefix_index: Tensor | None = None


@dataclass(frozen=True, slots=True)
class PrefixLayout:
    """Packed documents: those that are `alone` in a call as (start, stop), the others in buckets."""

    alone: tuple[tuple[int, int], ...]
    buckets: tuple[Bucket, ...]
    varlen: Varlen | None = None


@dataclass(frozen=True, slots=True)
class SuffixLayout:
    """Packed queries. `pairs` attend in one softmax; for the others, `own` keys and prefixes are apart.

    `documents`: numbers of the prefixes that `pairs` point into. `spans`: a prefix's number, and (start, stop) of its
    queries' rows.
    """

    pairs: tuple[QueryBucket, ...]
    documents: tuple[int, ...]
    own: tuple[QueryBucket, ...]
    spans: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Span:
    """A query among packed rows: where it starts, its length, and its document's number and length."""

    start: int
    length: int
    document: int
    prefix: int

    @property
    def short(self) -> bool:
        """Whether it sees its document and itself in one softmax."""
        return self.length <= PAIR_QUERY and self.prefix <= PAIR_PREFIX


def prefix_layout(lengths: Sequence[int], device: torch.device) -> PrefixLayout:
    """Documents of these lengths, one after the other."""
    starts = np.cumsum([0, *lengths])
    alone: list[tuple[int, int]] = []
    shared: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for start, length in zip(starts.tolist(), lengths, strict=False):
        if length > SHARED_PREFIX:
            alone.append((start, start + length))
        else:
            shared[rounded(length)].append((start, length))
    buckets = [_bucket(members, size, device) for size, members in sorted(shared.items())]
    return PrefixLayout(tuple(alone), tuple(Bucket(*bucket) for bucket in buckets))


def suffix_layout(
    spans: Sequence[Span],
    repeats: int,
    device: torch.device,
    last_only: bool = False,
    block: int | None = None,
) -> SuffixLayout:
    """Queries, `repeats` heads to one of keys; those of one document and kind stand together.

    `last_only`: of each query the last token alone asks, in a row of its own, in the order of `spans`. `block`: a query
    of more rows asks by itself, so many rows at a time, each over the keys up to its own: scores of every row at once
    would grow with the square of its length.
    """
    pairs: dict[tuple[int, int], list[int]] = defaultdict(list)
    own: dict[int, list[int]] = defaultdict(list)
    for number, span in enumerate(spans):
        if span.short:
            pairs[rounded(span.length), rounded(span.prefix)].append(number)
        elif last_only or block is None or span.length <= block:
            own[rounded(span.length)].append(number)
    documents = tuple(sorted({span.document for span in spans if span.short}))
    return SuffixLayout(
        pairs=tuple(
            _query_bucket(spans, members, size, prefix, documents, repeats, device, last_only)
            for (size, prefix), members in sorted(pairs.items())
        ),
        documents=documents,
        own=(
            *(
                _query_bucket(spans, members, size, 0, (), repeats, device, last_only)
                for size, members in sorted(own.items())
            ),
            *_blocks(spans, repeats, device, None if last_only else block),
        ),
        spans=tuple(_document_spans(spans, last_only)),
    )


def _blocks(spans: Sequence[Span], repeats: int, device: torch.device, block: int | None) -> Iterator[QueryBucket]:
    """Rows of queries that are longer than a block, block by block."""
    if block is None:
        return
    for span in (span for span in spans if not span.short and span.length > block):
        for first in range(0, span.length, block):
            last = min(first + block, span.length)
            rows = torch.arange(span.start + first, span.start + last, device=device)
            keys = torch.arange(span.start, span.start + last, device=device)
            hidden = np.triu(np.ones((last - first, last), dtype=bool), first + 1)  # (T, L)
            mask = np.repeat(np.where(hidden, np.float32("-inf"), np.float32(0)), repeats, axis=0)
            take = torch.arange(last - first, device=device)
            yield QueryBucket(rows[None], take, rows, keys[None], to_device(mask[None, None], device))


def _document_spans(spans: Sequence[Span], last_only: bool) -> list[tuple[int, int, int]]:
    """(document, start, stop) of the asking rows of each document's long pairs."""
    found: list[tuple[int, int, int]] = []
    for number, span in enumerate(spans):
        if span.short:
            continue
        start, stop = (number, number + 1) if last_only else (span.start, span.start + span.length)
        if found and found[-1][0] == span.document and found[-1][2] == start:
            start = found.pop()[1]
        found.append((span.document, start, stop))
    return found


def _bucket(members: Sequence[tuple[int, int]], size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """index, take and rows of sequences given as (start, length), each filled with its last row."""
    starts, lengths = np.array(members, dtype=np.int64).T
    places = np.arange(size)[None]
    index = starts[:, None] + np.minimum(places, lengths[:, None] - 1)
    real = places < lengths[:, None]
    return to_device(index, device), to_device(np.flatnonzero(real), device), to_device(index[real], device)


def _query_bucket(
    spans: Sequence[Span],
    members: Sequence[int],
    size: int,
    prefix: int,
    documents: tuple[int, ...],
    repeats: int,
    device: torch.device,
    last_only: bool,
) -> QueryBucket:
    chosen = [spans[number] for number in members]
    asking = [(number, 1) for number in members] if last_only else [(span.start, span.length) for span in chosen]
    index, take, rows = _bucket(asking, 1 if last_only else size, device)
    starts, lengths = np.array([(span.start, span.length) for span in chosen], dtype=np.int64).T
    places = np.arange(size)[None]
    own_index = starts[:, None] + np.minimum(places, lengths[:, None] - 1)
    causal = np.triu(np.ones((1, size, size), dtype=bool), 1)  # one for all
    hidden = (places >= lengths[:, None])[:, None] if last_only else causal  # (B or 1, T, L)
    prefix_index: Tensor | None = None
    if prefix:
        places_in_prefix, padded = _prefix_index(spans, chosen, prefix, documents)
        hidden = np.broadcast_to(hidden, (len(chosen), *hidden.shape[1:]))
        hidden = np.concatenate((np.broadcast_to(padded[:, None], (*hidden.shape[:2], prefix)), hidden), axis=-1)
        prefix_index = to_device(places_in_prefix, device)
    mask = np.where(hidden, np.float32("-inf"), np.float32(0))  # (B, T, S + L)
    mask = np.repeat(mask, repeats, axis=1)[:, None]
    return QueryBucket(index, take, rows, to_device(own_index, device), to_device(mask, device), prefix_index)


def _prefix_index(
    spans: Sequence[Span], chosen: Sequence[Span], prefix: int, documents: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of each pair's prefix among those of `documents` (B, S), and which of them only fill."""
    sizes = {span.document: span.prefix for span in spans}
    offsets = dict(zip(documents, np.cumsum([0, *(sizes[number] for number in documents)]).tolist(), strict=False))
    starts = np.array([offsets[span.document] for span in chosen])[:, None]
    lengths = np.array([span.prefix for span in chosen])[:, None]
    places = np.arange(prefix)[None]
    return starts + np.minimum(places, lengths - 1), places >= lengths
