"""The split step: partitions of neighbouring documents, and which pairs of one are new or already scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lakerank.cost import CostProfile, vision_cost, visual_tokens
from lakerank.duplicates.clusters import Clusters
from lakerank.plan.index import INDEX, LOCATION, Chunk, QueryList, TableIndex, chunks_and_rows, image_counts
from lakerank.plan.lookup import DOCUMENT_SCORES, DOCUMENT_STATES, RESULT, best_scores
from lakerank.plan.pairs import PAIRS, flat
from lakerank.plan.plan import with_columns
from lakerank.plan.units import GROUPS, NOT_LISTED, group_costs, group_starts, structs
from lakerank.plan.units import STATE as STATE_FIELD
from lakerank.schemas import MEMBERSHIPS

#: Ranges that a table is cut into, about: the driver holds a count for each, whatever the table's size.
DOCUMENT_RANGES = 16_384

#: Record types of the split. Pairs come to the first document of their content: its number is their `document`, and
#: `doc_id` and `hash` are null in its own row.
PAIR, SCORE, STATE = 0, 1, 2
SPLIT_RECORDS = {PAIR: PAIRS, SCORE: DOCUMENT_SCORES, STATE: DOCUMENT_STATES}

#: A pair that has a score: the query by number, its first-stage rank, and the score as it is in the lake.
REUSED = pa.schema([("doc_id", pa.string()), *MEMBERSHIPS, ("query", pa.int32()), ("rank", pa.int32()), *RESULT])

#: What the split reads of documents.
_INDEXED = [field for field in INDEX if field.name not in ("empty", "instruction")]
_DOCUMENTS = pa.schema([("number", pa.int64()), *_INDEXED, ("cost", pa.int64())])

Int64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class DocumentRanges:
    """Ranges of `rows` neighbouring documents: range numbers rise with document numbers. `first` and `count` are each
    chunk's first range and its number of ranges."""

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
class _Pairs:
    """The pairs (P,) of some rows (R,) of PAIRS. Of pairs with the same contents one leads: one of the content's first
    document, if that lists the query. Leaders (L,) are in the order of documents and queries; `leader` is each pair's,
    `contents` each row's content (C,), by its position.
    """

    table: pa.Table
    contents: Int64
    rows: Int64
    queries: Int64
    ranks: Int64
    leaders: Int64
    leader: Int64

    @classmethod
    def of(cls, pairs: pa.Table, same_as: npt.NDArray[np.int32]) -> _Pairs:
        pairs = pairs.append_column("later", pc.is_valid(pairs["doc_id"]))
        order_of = ("document", "later", "doc_id") if pc.any(pairs["later"]).as_py() else ("document",)
        pairs = pairs.sort_by([(name, "ascending") for name in order_of]).combine_chunks()
        rows, queries, ranks = flat(pairs)  # by row, then query: what follows is all but in order
        contents = np.cumsum(np.diff(pairs["document"].to_numpy(), prepend=-1) != 0) - 1
        upper = contents[rows] << 32
        keys = upper | same_as[queries]
        order = np.argsort(keys, kind="stable")
        starts = np.diff(keys[order], prepend=-1) != 0
        first = order[starts]
        sequence = np.argsort((upper | queries)[first], kind="stable")
        position, leader = np.empty(len(first), np.int64), np.empty(len(rows), np.int64)
        position[sequence] = np.arange(len(first))
        leader[order] = position[np.cumsum(starts) - 1]
        return cls(pairs, contents, rows, queries, ranks, first[sequence], leader)

    @property
    def first_rows(self) -> Int64:
        """The first row of each content (C,): its first document's own, if that is listed."""
        return np.flatnonzero(np.diff(self.contents, prepend=-1))

    @property
    def own(self) -> npt.NDArray[np.bool_]:
        """Whether each row is its content's first document."""
        return ~np.asarray(self.table["later"].to_numpy())

    def named(self, first: pa.Table, clusters: Clusters | None) -> pa.Table:
        """`doc_id`, MEMBERSHIPS and whether its content is `near` that of the first document, for each row (R,)."""
        own = first.select(["id", "hash"]).take(pa.array(self.contents)).combine_chunks()
        doc_ids, hashes = (pc.coalesce(self.table[n], own[of]) for n, of in (("doc_id", "id"), ("hash", "hash")))
        of_clusters = pa.nulls(len(hashes), pa.string()) if clusters is None else clusters.of(hashes)
        columns = [doc_ids, self.table["group_id"], of_clusters, pc.not_equal(hashes, own["hash"])]
        return pa.Table.from_arrays(columns, ["doc_id", *MEMBERSHIPS.names, "near"]).combine_chunks()


@dataclass(frozen=True, slots=True)
class Splitter:
    """Splits the pairs of a partition, whichever it is, into new ones and those with a score."""

    documents: TableIndex
    queries: QueryList
    max_queries: int
    readings: tuple[CostProfile, ...]
    clusters: Clusters | None = None

    def split(self, pairs: pa.Table, scores: pa.Table, states: pa.Table) -> tuple[pa.Table, pa.Table, dict[str, int]]:
        """Split PAIRS of a partition by its DOCUMENT_SCORES, the stored scores of its documents.

        Returns the new pairs as GROUPS, those with a score as REUSED, and totals for the forecast. Of new pairs
        with the same contents one is scored; the others are `shared`, and counted as reused too. A document that has
        one of DOCUMENT_STATES costs nothing.
        """
        same_as = self.queries.column("same_as").to_numpy()
        every = _Pairs.of(pairs, same_as)
        numbers = every.table["document"].to_numpy()[every.first_rows]
        rows, queries = every.contents[every.rows[every.leaders]], every.queries[every.leaders]
        keys, stored = best_scores(scores, numbers)
        required = (rows << 32) | same_as[queries]
        at = np.searchsorted(keys, required)
        has = np.append(keys, -1)[at] == required
        lasting = np.append(stored["lasting"].to_numpy(), False).astype(bool)[at] & has
        new = ~lasting
        state = self._states(pa.array(numbers), states)
        unread = np.intersect1d(rows[new], np.flatnonzero(state.is_null()))
        documents, read_bytes = self.indexed(numbers, unread)
        documents = documents.append_column("state", state)
        kept, named = np.flatnonzero(lasting[every.leader]), every.named(documents, self.clusters)
        reused = with_columns(
            stored.take(pa.array(at[every.leader[kept]])),
            REUSED,
            **{name: named[name].take(pa.array(every.rows[kept])) for name in ("doc_id", *MEMBERSHIPS.names)},
            query=pa.array(every.queries[kept].astype(np.int32)),
            rank=pa.array(every.ranks[kept].astype(np.int32)),
        )
        tried = stored["tried"].combine_chunks().take(pa.array(at[new], mask=~has[new]))
        costs = pa.array(np.where(state.is_valid(), 0, documents["cost"]))
        paid = documents.set_column(documents.schema.get_field_index("cost"), "cost", costs)
        groups = self._groups(paid, named, every, (new, tried))
        totals = self.totals(documents, rows[new], queries[new])
        totals |= {"reused": len(every.rows) - totals["new"], "read_bytes": read_bytes}
        shared = len(every.rows) - len(kept) - totals["new"]
        return groups, reused, totals | {"shared": shared, "near": int(named["near"].to_numpy()[every.rows].sum())}

    @staticmethod
    def _states(documents: pa.Array, states: pa.Table) -> pa.StructArray:
        """Where the states of documents (D,) are, by DOCUMENT_STATES: one of each, null without any.

        One in 16 bits goes before one in float32, which devices have that lack the checkpoint's own type.
        """
        states = states.sort_by([("dtype", "ascending"), ("file", "ascending")])
        places = pc.index_in(documents, value_set=states["document"].combine_chunks())
        kept = [states[name].combine_chunks().take(places) for name, _ in LOCATION]
        return pa.StructArray.from_arrays(kept, fields=list(STATE_FIELD[1]), mask=places.is_null())

    def indexed(self, numbers: Int64, new: Int64) -> tuple[pa.Table, int]:
        """Index rows of documents (D,), and bytes of the row groups that have those at the positions `new`."""
        tables, read_bytes = [_DOCUMENTS.empty_table()], 0
        for rows in self.documents.read(np.unique(chunks_and_rows(numbers)[0]).tolist(), _DOCUMENTS.names):
            own = rows["number"].to_numpy()
            _, wanted, at = np.intersect1d(numbers, own, assume_unique=True, return_indices=True)
            tables.append(rows.take(pa.array(at)))
            row_groups = (chunks_and_rows(own)[0] << 32) | rows["row_group"].to_numpy()
            groups = np.flatnonzero(np.diff(row_groups, prepend=-1))
            fetched = np.searchsorted(groups, at[np.isin(wanted, new)], side="right") - 1
            read_bytes += int(np.add.reduceat(_bytes(rows), groups)[np.unique(fetched)].sum())
        return pa.concat_tables(tables).sort_by("number").combine_chunks(), read_bytes

    def _groups(self, documents: pa.Table, named: pa.Table, every: _Pairs, pairs: tuple[Bools, pa.Array]) -> pa.Table:
        new, tried = pairs
        leaders = every.leaders[new]
        own, queries = every.own[every.rows[leaders]], every.queries[leaders]
        rows = every.contents[every.rows[leaders]]
        starts = group_starts(rows, self.max_queries)
        grouped = documents.take(pa.array(rows[starts]))
        offsets = pa.array(np.append(starts, len(rows)).astype(np.int32))
        ranks = np.where(own, every.ranks[leaders], NOT_LISTED)
        memberships = named.select(MEMBERSHIPS.names).take(pa.array(every.first_rows[rows[starts]]))
        return with_columns(
            grouped,
            GROUPS,
            doc_id=grouped["id"],
            doc_hash=grouped["hash"],
            **{name: memberships[name] for name in MEMBERSHIPS.names},
            cost=pa.array(self.costs(documents, rows, queries, starts)),
            queries=pa.ListArray.from_arrays(offsets, pa.array(queries.astype(np.int32))),
            ranks=pa.ListArray.from_arrays(offsets, pa.array(ranks.astype(np.int32))),
            tried=pa.ListArray.from_arrays(offsets, tried),
            shared=_shared(named, every, new, starts),
            list=pa.nulls(len(starts), pa.string()),
        )

    def totals(self, documents: pa.Table, rows: Int64, queries: Int64) -> dict[str, int]:
        """Totals of new pairs. `pairwise_cost`: were each document read again for each query."""
        new = documents.take(pa.array(np.unique(rows)))
        patches = 4 * self._visual_tokens(new)  # a visual token covers 2 × 2
        pairwise = self.costs(documents, rows, queries, np.arange(len(rows)))
        return {
            "new": len(rows),
            "new_documents": new.num_rows,
            "pairwise_cost": int(pairwise.sum()),
            "patches": int(patches.sum()) if self.readings[-1].accepts_images else 0,
            "fetch_bytes": int(_bytes(new.filter(new["state"].is_null())).sum()),
        }

    def costs(self, documents: pa.Table, rows: Int64, queries: Int64, starts: Int64) -> Int64:
        """Cost of the groups of pairs that begin at `starts`."""
        has_image = self.queries.column("has_image").to_numpy(zero_copy_only=False)
        with_image = (documents["image_bytes"].to_numpy() > 0)[rows] | has_image[queries]
        query_costs = self.queries.column("cost").to_numpy()[queries]
        costs = documents["cost"].to_numpy()[rows[starts]]
        shared = vision_cost(self._visual_tokens(documents))[rows[starts]]
        return group_costs(starts, costs, shared, query_costs, with_image, self.readings)

    def _visual_tokens(self, documents: pa.Table) -> Int64:
        width, height = (documents[name].fill_null(0).to_numpy().astype(np.int64) for name in ("width", "height"))
        sizing = self.documents.sizing
        return visual_tokens(width, height, sizing, image_counts(documents, sizing))


def _shared(named: pa.Table, every: _Pairs, new: Bools, starts: Int64) -> pa.ListArray:
    """The pairs of each group, of those that begin at `starts` among new leaders, that get another one's score."""
    leads = every.leaders[every.leader] == np.arange(len(every.rows))
    chosen = np.flatnonzero(new[every.leader] & ~(leads & every.own[every.rows]))
    group = np.searchsorted(starts, np.cumsum(new)[every.leader[chosen]] - 1, side="right")
    order = np.argsort(group, kind="stable")
    chosen, group = chosen[order], group[order]
    numbers = {"of": every.queries[every.leaders[every.leader[chosen]]], "number": every.queries[chosen]}
    numbers |= {"rank": every.ranks[chosen]}
    columns = {name: pa.array(values.astype(np.int32)) for name, values in numbers.items()}
    rows = named.take(pa.array(every.rows[chosen])).combine_chunks()
    columns |= {name: rows[name].combine_chunks() for name in ("doc_id", *MEMBERSHIPS.names)}
    ends = np.searchsorted(group, np.arange(1, len(starts) + 2)).astype(np.int32)
    return structs(GROUPS.field("shared"), ends, columns | {"new": pa.array(leads[chosen])})


def _bytes(rows: pa.Table) -> Int64:
    return np.asarray(rows["text_bytes"].to_numpy() + rows["image_bytes"].to_numpy(), dtype=np.int64)
