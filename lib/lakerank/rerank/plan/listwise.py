"""The plan of a stage that scores lists: each query's documents in the order of the stage before, cut into units.

A list has each content once: other documents of that content get its score, as do the lists of other queries with the
same contents. A row of `groups/` is a pair, and a list's rows follow each other in its order; its cost is in the last,
so that no unit ends within a list. Lists with scores are in `lists/`, in the same form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lakerank.cost import list_costs
from lakerank.fingerprint import sequence_hash
from lakerank.lake.storage import join
from lakerank.limits import Listwise
from lakerank.plan.index import LOCATION, SIZES, RankedFiles, TableIndex
from lakerank.plan.lookup import INDEXED_SCORES, ScoreIndex
from lakerank.plan.pairs import PAIRS, flat, hash_parts
from lakerank.plan.partitions import PAIR, REUSED, SCORE, Splitter
from lakerank.plan.plan import read_part, with_columns, write_part
from lakerank.plan.units import GROUPS, structs
from lakerank.ranking import best_of_groups, ranks
from lakerank.records import TRANSIENT_REASONS
from lakerank.rerank.plan.builder import PlanBuilder
from lakerank.rerank.plan.sample import LISTED, Lists, in_order
from lakerank.rerank.plan.steps import score_index, write_split
from lakerank.rerank.rank.lists import by_query
from lakerank.runner import BATCHES, COUNTS, Counts, pack
from lakerank.schemas import MEMBERSHIPS

_KEYS = [("query", pa.int32()), ("rank", pa.int32()), ("doc_id", pa.string()), ("doc_hash", pa.string()), *MEMBERSHIPS]

#: A pair with its document's location and sizes; then its place in its list, and that one's key.
_LOCATED = pa.schema([*_KEYS, *LOCATION, *SIZES, ("cost", pa.int64())])
_PLACED = pa.schema([*_LOCATED, ("position", pa.int32()), ("list", pa.string())])

#: Record type of LISTED scores.
_ORDER = 1

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ListSplitter:
    """Puts pairs in the order of their lists, and splits these into new ones and those with scores."""

    pairs: Splitter
    files: RankedFiles
    listwise: Listwise

    def locate(self, pairs: pa.Table) -> pa.Table:
        """PAIRS of some documents as _LOCATED."""
        rows, queries, first_stage = flat(pairs)
        numbers, at = np.unique(pairs["document"].to_numpy()[rows], return_inverse=True)
        documents, _ = self.pairs.indexed(numbers, numbers[:0])
        pairs = pairs.take(pa.array(rows))
        clusters = self.pairs.clusters.of(pairs["hash"]) if self.pairs.clusters else pa.nulls(len(rows), pa.string())
        keys = {"query": pa.array(queries.astype(np.int32)), "rank": pa.array(first_stage.astype(np.int32))}
        keys |= {"doc_id": pairs["doc_id"], "doc_hash": pairs["hash"], "group_id": pairs["group_id"]}
        return with_columns(documents.take(pa.array(at)), _LOCATED, **keys, cluster=clusters)

    def place(self, located: pa.Table, listed: pa.Table) -> pa.Table:
        """_LOCATED pairs in the order of their LISTED scores, as _PLACED."""
        rows = in_order(located.join(listed, ["query", "doc_id"], join_type="inner"))
        query = rows["query"].to_numpy()
        starts = np.diff(query, prepend=-1) != 0
        contents = rows["doc_hash"].combine_chunks().dictionary_encode().indices.to_numpy()
        distinct = rows.filter(pa.array(best_of_groups(query, contents, 1)))
        lists = distinct.group_by("query", use_threads=False).aggregate([("doc_hash", "list")])
        hashes = self.pairs.queries.column("hash").take(lists["query"].combine_chunks()).to_pylist()
        contents = lists["doc_hash_list"].to_pylist()
        keys = [sequence_hash([(query_hash, *each)]) for query_hash, each in zip(hashes, contents, strict=True)]
        key = pa.array(keys, pa.string()).take(pa.array(np.cumsum(starts) - 1))
        return with_columns(rows, _PLACED, position=pa.array(ranks(starts)), list=key)

    def split(self, placed: pa.Table, stored: pa.Table) -> tuple[pa.Table, pa.Table, pa.Table, dict[str, int]]:
        """Split _PLACED pairs of whole lists by INDEXED_SCORES: a list is reused where one unit has all of it.

        Returns new lists and reused ones as GROUPS, these with their scores as REUSED, and totals for the forecast.
        """
        placed = placed.sort_by([(name, "ascending") for name in ("list", "query", "position")]).combine_chunks()
        coded, contents = (placed[name].combine_chunks().dictionary_encode() for name in ("list", "doc_hash"))
        lists = coded.indices.to_numpy().astype(np.int64)
        pairs = lists * max(1, len(contents.dictionary)) + contents.indices.to_numpy()
        _, first, same = np.unique(pairs, return_index=True, return_inverse=True)
        unit, tried = _stored_in(coded.dictionary, np.bincount(lists[first]), stored)
        placed = placed.append_column("unit", unit.take(coded.indices))
        placed = placed.append_column("tried", tried.take(coded.indices))
        groups, rows = self._groups(placed, first, first[same])
        reused = placed.filter(placed["unit"].is_valid()).drop_columns("tried")
        reused = reused.join(stored, ["list", "unit", "doc_hash"], ["query_hash", "unit", "doc_hash"], "inner")
        kept, new = rows["unit"].is_valid(), placed["unit"].null_count
        totals = {"lists": len(unit), "reused_lists": len(unit) - unit.null_count}
        totals |= self._totals(rows.filter(pc.invert(kept)))
        totals |= {"reused": len(lists) - totals["new"], "shared": new - totals["new"]}
        return groups.filter(pc.invert(kept)), groups.filter(kept), reused.select(REUSED.names).cast(REUSED), totals

    def _groups(self, placed: pa.Table, first: Int64, leads: Int64) -> tuple[pa.Table, pa.Table]:
        """The first pair of each list and content (L,), list by list, as GROUPS and as it is; each pair (P,) gets the
        score of its lead."""
        query, position = placed["query"].to_numpy(), placed["position"].to_numpy()
        first = first[np.lexsort((position[first], query[first]))]
        place = np.empty(len(leads), np.int64)
        place[first] = np.arange(len(first))
        others = np.flatnonzero(leads != np.arange(len(leads)))
        others = others[np.argsort(place[leads[others]], kind="stable")]
        of = place[leads[others]]
        rows, shared = (placed.take(pa.array(chosen)).combine_chunks() for chosen in (first, others))
        kind, new = GROUPS.field("shared"), pa.array(np.zeros(len(others), bool))
        of_query = rows["query"].take(pa.array(of))
        shared = with_columns(shared, pa.schema([*kind.type.value_type]), of=of_query, number=shared["query"], new=new)
        columns = {name: shared[name].combine_chunks() for name in shared.column_names}
        each = pa.array(np.arange(len(first) + 1, dtype=np.int32))
        lists = {"queries": "query", "ranks": "rank", "tried": "tried"}
        groups = with_columns(
            rows,
            GROUPS,
            state=pa.nulls(len(first), GROUPS.field("state").type),
            cost=pa.array(self._costs(rows)),
            shared=structs(kind, np.searchsorted(of, np.arange(len(first) + 1)).astype(np.int32), columns),
            **{name: pa.ListArray.from_arrays(each, rows[own].combine_chunks()) for name, own in lists.items()},
        )
        return groups, rows

    def _costs(self, rows: pa.Table) -> Int64:
        """Each list's cost in its last row (P,), 0 in the others."""
        query, costs = rows["query"].to_numpy(), np.zeros(rows.num_rows, np.int64)
        starts, ends = np.flatnonzero(np.diff(query, prepend=-1)), np.flatnonzero(np.diff(query, append=-1))
        if len(starts):
            each, of_query = np.arange(len(query)), self.pairs.queries.column("cost").to_numpy()[query]
            documents = np.maximum(1, self.pairs.costs(rows, each, query, each) - of_query)
            tokens = np.add.reduceat(documents, starts) + 2 * of_query[starts]  # a query may stand at both ends
            costs[ends] = list_costs(tokens, ends + 1 - starts, self.listwise)
        return costs

    def _totals(self, rows: pa.Table) -> dict[str, int]:
        """Totals of new pairs (P,); a document counts once."""
        contents = rows["doc_hash"].combine_chunks().dictionary_encode().indices.to_numpy()
        _, first, of = np.unique(contents, return_index=True, return_inverse=True)
        documents = rows.take(pa.array(first)).append_column("state", pa.nulls(len(first)))
        return self.pairs.totals(documents, of, rows["query"].to_numpy())


def _stored_in(lists: pa.Array, contents: Int64, stored: pa.Table) -> tuple[pa.Array, pa.Array]:
    """For each list (L,) of so many contents the unit that has all its scores; and what makes the name of a further
    unit of it another one: a unit that it was scored in, and in how many. Null for none."""
    stored = stored.filter(pc.is_in(stored["query_hash"], lists))
    transient = pc.is_in(stored["reason"], pa.array(sorted(reason.value for reason in TRANSIENT_REASONS)))
    lasting = stored.filter(pc.invert(transient)).group_by(["query_hash", "unit"]).aggregate([("doc_hash", "count")])
    required = contents[pc.index_in(lasting["query_hash"], lists).to_numpy()]
    whole = lasting.filter(pa.array(lasting["doc_hash_count"].to_numpy() == required))

    def of_lists(rows: pa.Table, how: str) -> pa.Array:
        units = rows.group_by("query_hash").aggregate([("unit", how)]).combine_chunks()
        at = pc.index_in(lists, units["query_hash"].combine_chunks())
        return units[f"unit_{how}"].combine_chunks().take(at).cast(pa.string())

    tried = pc.binary_join_element_wise(of_lists(stored, "max"), of_lists(stored, "count_distinct"), " ")
    return of_lists(whole, "max"), tried


def split_lists(
    builder: PlanBuilder, scorer: str, documents: TableIndex, lists: Lists, pairs: Counts, bits: int
) -> dict[str, Any]:
    """Split the pairs of `pairs/`, in the order of lists, as `builder.split` does pairs: by document, then by query,
    then by list, in 2^bits parts."""
    runner, storage, folder, files = builder.runner, builder.storage, builder.folder, lists.files
    partitions, limits, clusters = builder.partitions(documents, pairs), builder.limits, builder.clusters(documents)
    of_pairs = Splitter(documents, files.queries, 1, limits.readings, clusters)
    splitter = ListSplitter(of_pairs, files, limits.listwise or Listwise())
    scores = score_index(runner, ScoreIndex(storage, builder.paths.output, scorer))

    def read(name: str) -> Iterator[pa.RecordBatch]:
        rows = read_part(storage, join(folder, "pairs", name), PAIRS)
        yield from pack(PAIR, partitions.of(rows["document"].to_numpy()), rows)

    def locate(_: int, tables: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        yield from by_query(PAIR, splitter.locate(tables[PAIR]), files)

    def place(_: int, tables: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        rows = splitter.place(tables[PAIR], tables[_ORDER])
        yield from pack(PAIR, hash_parts(rows["list"], bits), rows)

    def stored(name: str) -> Iterator[pa.RecordBatch]:
        rows = scores.stored(name)
        yield from pack(SCORE, hash_parts(rows["query_hash"], bits), rows)

    def split(part: int, tables: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        groups, kept, *results = splitter.split(tables[PAIR], tables[SCORE])
        if kept.num_rows:
            write_part(storage, join(folder, "lists"), part, kept)
        yield from write_split(storage, folder, part, groups, *results)

    runner.describe("plan: split new lists from scored ones")
    rows = runner.scatter(storage.list_names(join(folder, "pairs")), read, BATCHES)
    located = runner.exchange([rows], partitions.count, {PAIR: PAIRS}, locate, BATCHES)
    order = lists.frames(runner, storage, _ORDER)
    kinds = {PAIR: _LOCATED, _ORDER: LISTED}
    placed = runner.exchange([located, *order], len(files.firsts) + 1, kinds, place, BATCHES)
    known = runner.scatter(scores.names, stored, BATCHES, tasks=8 * runner.parallelism)
    kinds = {PAIR: _PLACED, SCORE: INDEXED_SCORES}
    return builder.cut(runner.summed(runner.exchange([placed, known], 2**bits, kinds, split, COUNTS)), files.queries)
