"""The split step: partitions of neighbouring documents, and which pairs of one are new or already scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lakerank.cost import CostProfile, vision_cost, visual_tokens
from lakerank.plan.index import INDEX, Chunk, QueryList, TableIndex, chunks_and_rows
from lakerank.plan.lookup import DOCUMENT_SCORES, RESULT, best_scores
from lakerank.plan.pairs import PAIRS, flat
from lakerank.plan.units import GROUPS, group_costs, group_starts

#: Ranges that a table is cut into, about: the driver holds a count for each, whatever the table's size.
DOCUMENT_RANGES = 16_384

#: Pairs of a document by its number; a document is in one row.
DOCUMENT_PAIRS = PAIRS.remove(PAIRS.get_field_index("doc_id"))

#: Record types of the split.
PAIR, SCORE = 0, 1
SPLIT_RECORDS = {PAIR: DOCUMENT_PAIRS, SCORE: DOCUMENT_SCORES}

#: A pair that has a score: the query by number, its first-stage rank, and the score as it is in the lake.
REUSED = pa.schema([("doc_id", pa.string()), ("query", pa.int32()), ("rank", pa.int32()), *RESULT])

_SIZES = ["text_bytes", "image_bytes", "width", "height"]
_COLUMNS = ["id", "hash", "file", "row_group", "row", *_SIZES]

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class DocumentRanges:
    """Ranges of neighbouring documents: range numbers rise with document numbers.

    Attributes:
        rows: documents of a range.
        first: each chunk's first range.
        count: ranges of each chunk.
    """

    rows: int
    first: Int64
    count: Int64

    def of(self, documents: Int64) -> Int64:
        """The range of each document number: (N,) -> (N,)."""
        chunks, rows = chunks_and_rows(documents)
        return np.asarray(self.first[chunks] + np.minimum(rows // self.rows, self.count[chunks] - 1))

    @property
    def end(self) -> int:
        """One more than the last range."""
        return int(self.first[-1] + self.count[-1]) if len(self.first) else 1


@dataclass(frozen=True, slots=True)
class Partitions:
    """Partitions of neighbouring document ranges: `edges` are the first ranges of all partitions but the first."""

    ranges: DocumentRanges
    edges: Int64

    @property
    def count(self) -> int:
        """How many partitions there are."""
        return len(self.edges) + 1

    def of(self, documents: Int64) -> Int64:
        """The partition of each document number: (N,) -> (N,)."""
        return np.asarray(np.searchsorted(self.edges, self.ranges.of(documents), side="right"))


def document_ranges(chunks: Sequence[Chunk], count: int = DOCUMENT_RANGES) -> DocumentRanges:
    """About `count` ranges of the table that the chunks are of; small chunks share one."""
    total = sum(chunk.rows for chunk in chunks)
    rows = max(1, -(-total // count))
    sizes = np.array([chunk.rows for chunk in chunks] or [0], dtype=np.int64)
    counts = np.maximum(1, -(-sizes // rows))
    first = (np.cumsum(sizes) - sizes) // rows
    # A chunk begins no earlier than where the one before it ends.
    ends = np.maximum.accumulate(first + counts - 1)
    first[1:] = np.maximum(first[1:], ends[:-1])
    return DocumentRanges(rows, first, counts)


def even_edges(sizes: Mapping[int, int], partitions: int) -> Int64:
    """First numbers of all partitions but the first, when numbers with these sizes are put into about `partitions`
    even ones."""
    numbers = np.array(sorted(sizes), dtype=np.int64)
    passed = np.cumsum([sizes[number] for number in numbers.tolist()])
    if partitions <= 1 or not len(numbers):
        return np.zeros(0, np.int64)
    # A partition ends with the number that reaches its share, so that a large one is not followed by a small remainder.
    firsts = np.searchsorted(passed, passed[-1] * np.arange(1, partitions) / partitions) + 1
    return np.unique(numbers[firsts[firsts < len(numbers)]])


@dataclass(frozen=True, slots=True)
class SplitPairs:
    """A partition's new pairs as GROUPS, those with a score as REUSED, and totals for the forecast."""

    groups: pa.Table
    reused: pa.Table
    totals: dict[str, int]


@dataclass(frozen=True, slots=True)
class Splitter:
    """Splits the pairs of a partition, whichever it is, into new ones and those with a score."""

    documents: TableIndex
    queries: QueryList
    max_queries: int
    readings: tuple[CostProfile, ...] = (CostProfile(),)

    def split(self, pairs: pa.Table, scores: pa.Table) -> SplitPairs:
        """Split DOCUMENT_PAIRS of a partition by its DOCUMENT_SCORES, the stored scores of its documents."""
        pairs = pairs.sort_by("document").combine_chunks()
        numbers = pairs["document"].to_numpy()
        rows, queries, ranks = flat(pairs)
        order = np.argsort((rows << 32) | queries)
        rows, queries, ranks = rows[order], queries[order], ranks[order]
        keys, stored = best_scores(scores, numbers)
        same = self.queries.column("same_as").to_numpy()
        at, has = _matched((rows << 32) | same[queries], keys)
        lasting = np.append(stored["lasting"].to_numpy(zero_copy_only=False), False).astype(bool)[at] & has
        documents, read_bytes = self._documents(numbers, np.unique(rows[~lasting]))
        reused = _reused(documents, rows[lasting], queries[lasting], ranks[lasting], stored.take(pa.array(at[lasting])))
        units = stored["unit"].combine_chunks()
        tried = units.take(pa.array(np.where(has, at, 0), mask=~has)).filter(pa.array(~lasting))
        groups = self._groups(documents, rows[~lasting], queries[~lasting], ranks[~lasting], tried)
        totals = self._totals(documents, rows[~lasting], queries[~lasting])
        return SplitPairs(groups, reused, {**totals, "reused": int(lasting.sum()), "read_bytes": read_bytes})

    def _documents(self, numbers: Int64, new: Int64) -> tuple[pa.Table, int]:
        """Index rows of documents (D,), and bytes of the row groups that have those at the positions `new`."""
        chunks, chunk_rows = chunks_and_rows(numbers)
        tables, read_bytes = [], 0
        for chunk in np.unique(chunks).tolist():
            rows = self.documents.read(chunk, _COLUMNS)
            inside = np.flatnonzero(chunks == chunk)
            tables.append(rows.take(pa.array(chunk_rows[inside])))
            groups = rows["row_group"].to_numpy()
            sizes = np.bincount(groups - groups[0], weights=_bytes(rows))
            fetched = chunk_rows[np.intersect1d(inside, new)]
            read_bytes += int(sizes[np.unique(groups[fetched] - groups[0])].sum())
        if not tables:
            schema = pa.schema([INDEX.field(name) for name in _COLUMNS]).append(pa.field("cost", pa.int64()))
            return schema.empty_table(), 0
        return pa.concat_tables(tables).combine_chunks(), read_bytes

    def _groups(self, documents: pa.Table, rows: Int64, queries: Int64, ranks: Int64, tried: pa.Array) -> pa.Table:
        starts = group_starts(rows, self.max_queries)
        grouped = documents.take(pa.array(rows[starts]))
        costs = self._costs(documents, rows, queries, starts)
        offsets = pa.array(np.append(starts, len(rows)).astype(np.int32))
        lists = [
            pa.ListArray.from_arrays(offsets, values)
            for values in (pa.array(queries.astype(np.int32)), pa.array(ranks.astype(np.int32)), tried)
        ]
        keys = (grouped[name] for name in ("id", "hash", "file", "row_group", "row"))
        return pa.Table.from_arrays([*keys, pa.array(costs), *lists], schema=GROUPS)

    def _totals(self, documents: pa.Table, rows: Int64, queries: Int64) -> dict[str, int]:
        """Totals of new pairs. `pairwise_cost`: were each document read again for each query."""
        new = documents.take(pa.array(np.unique(rows)))
        patches = 4 * self._visual_tokens(new)  # a visual token stands for 2 × 2
        pairwise = self._costs(documents, rows, queries, np.arange(len(rows)))
        return {
            "new": len(rows),
            "new_documents": new.num_rows,
            "pairwise_cost": int(pairwise.sum()),
            "patches": int(patches.sum()) if self.readings[-1].accepts_images else 0,
            "fetch_bytes": int(_bytes(new).sum()),
        }

    def _costs(self, documents: pa.Table, rows: Int64, queries: Int64, starts: Int64) -> Int64:
        """Cost of the groups of pairs that begin at `starts`."""
        costs, image_bytes = documents["cost"].to_numpy(), documents["image_bytes"].to_numpy()
        has_image = self.queries.column("has_image").to_numpy(zero_copy_only=False)
        with_image = (image_bytes[rows] > 0) | has_image[queries].astype(bool)
        query_costs = self.queries.column("cost").to_numpy()[queries].astype(np.int64)
        grouped = rows[starts]
        shared = vision_cost(self._visual_tokens(documents))
        return group_costs(starts, costs[grouped], shared[grouped], query_costs, with_image, self.readings)

    def _visual_tokens(self, documents: pa.Table) -> Int64:
        width, height = (documents[name].fill_null(0).to_numpy().astype(np.int64) for name in ("width", "height"))
        return visual_tokens(width, height, self.documents.sizing)


def _bytes(rows: pa.Table) -> Int64:
    return np.asarray(rows["text_bytes"].to_numpy() + rows["image_bytes"].to_numpy(), dtype=np.int64)


def _matched(required: Int64, keys: Int64) -> tuple[Int64, npt.NDArray[np.bool_]]:
    """Position of each required key (P,) in rising `keys` (N,), and whether it is there; N where it is not."""
    at = np.searchsorted(keys, required)
    has = np.append(keys, -1)[at] == required
    return np.where(has, at, len(keys)), has


def _reused(documents: pa.Table, rows: Int64, queries: Int64, ranks: Int64, scores: pa.Table) -> pa.Table:
    columns: dict[str, Any] = {
        "doc_id": documents["id"].combine_chunks().take(pa.array(rows)),
        "query": pa.array(queries.astype(np.int32)),
        "rank": pa.array(ranks.astype(np.int32)),
    }
    arrays = [columns[name] if name in columns else scores[name] for name in REUSED.names]
    return pa.Table.from_arrays(arrays, schema=REUSED)
