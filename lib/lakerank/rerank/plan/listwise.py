"""The plan of a stage that scores lists: each query's documents in the order of the stage before, cut into units.

A list has each content once: other documents of that content get its score, as do the lists of other queries with the
same contents. A row of `groups/` is a pair, and a list's rows follow each other in its order; its cost is in the last,
so that no unit ends within a list.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lakerank.cost import list_costs, visual_tokens
from lakerank.duplicates.clusters import Clusters
from lakerank.fingerprint import sequence_hash
from lakerank.lake.storage import join
from lakerank.limits import Listwise
from lakerank.plan.index import LOCATION, RankedFiles, TableIndex, chunks_and_rows, image_counts
from lakerank.plan.lookup import INDEXED_SCORES, ScoreIndex
from lakerank.plan.pairs import PAIRS, flat, hash_parts
from lakerank.plan.partitions import PAIR, REUSED, SCORE, Partitions
from lakerank.plan.plan import PlanLimits, read_part, with_columns
from lakerank.plan.units import GROUPS, structs
from lakerank.ranking import best_of_groups, ranks
from lakerank.records import TRANSIENT_REASONS
from lakerank.rerank.plan.sample import LISTED, in_order
from lakerank.rerank.plan.steps import write_split
from lakerank.rerank.rank.lists import by_query
from lakerank.runner import BATCHES, COUNTS, Counts, Rows, Runner, pack
from lakerank.schemas import MEMBERSHIPS

_SIZES = [(name, pa.int64()) for name in ("cost", "bytes", "row_group_bytes", "patches")]
_KEYS = [("query", pa.int32()), ("rank", pa.int32()), ("doc_id", pa.string()), ("doc_hash", pa.string()), *MEMBERSHIPS]

#: A pair with its document's location and sizes; then in its list: from 0, and the list by its key.
LOCATED = pa.schema([*_KEYS, *LOCATION, *_SIZES])
PLACED = pa.schema([*LOCATED, ("position", pa.int32()), ("list", pa.string())])

_INDEXED = ["number", *pa.schema(LOCATION).names, "cost", "text_bytes", "image_bytes"]
_INDEXED += ["width", "height", "images", "frames"]

#: Record type of LISTED scores.
LIST_ORDER = 1

Int64 = npt.NDArray[np.int64]


def list_key(query_hash: str, doc_hashes: Sequence[str]) -> str:
    """What a list's scores are kept by: its query's content and its documents' contents in order."""
    return sequence_hash([(query_hash, *doc_hashes)])


@dataclass(frozen=True, slots=True)
class ListSplitter:
    """Puts pairs in the order of their lists, and splits these into new ones and those with scores."""

    documents: TableIndex
    files: RankedFiles
    limits: PlanLimits
    clusters: Clusters | None = None

    def locate(self, pairs: pa.Table) -> pa.Table:
        """PAIRS of some documents as LOCATED."""
        rows, queries, first_stage = flat(pairs)
        numbers = pairs["document"].to_numpy()[rows]
        indexed = self._indexed(np.unique(numbers))
        indexed = indexed.take(pa.array(np.searchsorted(indexed["number"].to_numpy(), numbers)))
        pairs = pairs.take(pa.array(rows))
        clusters = pa.nulls(len(rows), pa.string()) if self.clusters is None else self.clusters.of(pairs["hash"])
        keys = {"query": pa.array(queries.astype(np.int32)), "rank": pa.array(first_stage.astype(np.int32))}
        keys |= {"doc_id": pairs["doc_id"], "doc_hash": pairs["hash"], "group_id": pairs["group_id"]}
        return with_columns(indexed, LOCATED, **keys, cluster=clusters)

    def _indexed(self, numbers: Int64) -> pa.Table:
        """Location and sizes of documents (D,) of rising numbers."""
        tables, sizing, reads_images = [], self.documents.sizing, self.limits.readings[0].accepts_images
        for rows in self.documents.read(np.unique(chunks_and_rows(numbers)[0]).tolist(), _INDEXED):
            own, images = rows["number"].to_numpy(), rows["image_bytes"].to_numpy()
            size = rows["text_bytes"].to_numpy() + images
            row_groups = (chunks_and_rows(own)[0] << 32) | rows["row_group"].to_numpy()
            _, row_group = np.unique(row_groups, return_inverse=True)
            width, height = (rows[name].fill_null(0).to_numpy().astype(np.int64) for name in ("width", "height"))
            patches = 4 * visual_tokens(width, height, sizing, image_counts(rows, sizing)) * reads_images
            cost = np.where((images > 0) & (not reads_images), 1, rows["cost"].to_numpy())
            sizes = (cost, size, np.bincount(row_group, size)[row_group].astype(np.int64), patches)
            rows = rows.select(_INDEXED[:4])
            for (name, _), values in zip(_SIZES, sizes, strict=True):
                rows = rows.append_column(name, pa.array(values))
            tables.append(rows.filter(pa.array(np.isin(own, numbers))))
        return pa.concat_tables(tables).sort_by("number").combine_chunks()

    def place(self, located: pa.Table, listed: pa.Table) -> pa.Table:
        """LOCATED pairs in the order of their LISTED scores, as PLACED."""
        rows = in_order(located.join(listed, ["query", "doc_id"], join_type="inner"))
        query = rows["query"].to_numpy()
        starts = np.diff(query, prepend=-1) != 0
        contents = rows["doc_hash"].combine_chunks().dictionary_encode().indices.to_numpy()
        first = best_of_groups(query, contents, 1)
        lists = rows.filter(pa.array(first)).group_by("query", use_threads=False).aggregate([("doc_hash", "list")])
        hashes = self.files.queries.column("hash").take(lists["query"].combine_chunks())
        keys = [list_key(*parts) for parts in zip(hashes.to_pylist(), lists["doc_hash_list"].to_pylist(), strict=True)]
        lists = pa.array(keys, pa.string()).take(pa.array(np.cumsum(starts) - 1))
        return with_columns(rows, PLACED, position=pa.array(ranks(starts) - 1), list=lists)

    def split(self, placed: pa.Table, stored: pa.Table) -> tuple[pa.Table, pa.Table, dict[str, int]]:
        """Split PLACED pairs of whole lists by INDEXED_SCORES: a list is reused where one unit has all of it.

        Returns the pairs of new lists as GROUPS, those of lists with scores as REUSED, and totals for the forecast.
        """
        placed = placed.sort_by([(name, "ascending") for name in ("list", "query", "position")]).combine_chunks()
        coded, contents = (placed[name].combine_chunks().dictionary_encode() for name in ("list", "doc_hash"))
        lists = coded.indices.to_numpy().astype(np.int64)
        pair = lists * max(1, len(contents.dictionary)) + contents.indices.to_numpy()
        _, first, same = np.unique(pair, return_index=True, return_inverse=True)
        lead = first[same]  # the pair whose score each one gets
        unit, tried = _stored_in(coded.dictionary, np.bincount(lists[first]), stored)
        new = np.asarray(unit.is_null())[lists]
        has = pa.array(~new)
        reused = placed.select([*_names(_KEYS), "list"]).append_column("unit", unit.take(coded.indices)).filter(has)
        of_list = ["list", "unit", "doc_hash"]
        reused = reused.join(stored, of_list, ["query_hash", *of_list[1:]], join_type="inner").select(REUSED.names)
        groups = self._groups(placed, lead, new, tried.take(coded.indices))
        leads = placed.filter(pa.array(new & (lead == np.arange(len(lead)))))
        totals = {"new": len(leads), "reused": len(lead) - len(leads), "shared": int(new.sum()) - len(leads)}
        totals |= {"lists": len(coded.dictionary), "reused_lists": len(unit) - unit.null_count}
        return groups, reused.cast(REUSED), totals | self._sizes(leads)

    def _groups(self, placed: pa.Table, lead: Int64, new: npt.NDArray[np.bool_], tried: pa.Array) -> pa.Table:
        query, position = placed["query"].to_numpy(), placed["position"].to_numpy()
        own = lead == np.arange(len(lead))
        leads = np.flatnonzero(new & own)
        leads = leads[np.lexsort((position[leads], query[leads]))]
        place = np.empty(len(lead), np.int64)
        place[leads] = np.arange(len(leads))
        others = np.flatnonzero(new & ~own)
        others = others[np.argsort(place[lead[others]], kind="stable")]
        rows, shared = placed.take(pa.array(leads)).combine_chunks(), placed.take(pa.array(others)).combine_chunks()
        numbers = {"number": shared["query"], "rank": shared["rank"]}
        numbers["of"] = rows["query"].take(pa.array(place[lead[others]]))
        columns = {name: column.combine_chunks() for name, column in numbers.items()}
        columns |= {name: shared[name].combine_chunks() for name in ("doc_id", *MEMBERSHIPS.names)}
        columns["new"] = pa.array(np.zeros(len(others), bool))
        edges = np.searchsorted(place[lead[others]], np.arange(len(leads) + 1)).astype(np.int32)
        each = pa.array(np.arange(len(leads) + 1, dtype=np.int32))
        return with_columns(
            rows,
            GROUPS,
            state=pa.nulls(len(leads), GROUPS.field("state").type),
            cost=pa.array(self._costs(rows)),
            queries=pa.ListArray.from_arrays(each, rows["query"].combine_chunks()),
            ranks=pa.ListArray.from_arrays(each, rows["rank"].combine_chunks()),
            tried=pa.ListArray.from_arrays(each, tried.take(pa.array(leads))),
            shared=structs(GROUPS.field("shared"), edges, columns),
        )

    def _costs(self, rows: pa.Table) -> Int64:
        """Each list's cost in its last row (P,), 0 in the others."""
        query, costs = rows["query"].to_numpy(), np.zeros(rows.num_rows, np.int64)
        starts = np.flatnonzero(np.diff(query, prepend=-1))
        if len(starts):
            tokens = np.add.reduceat(rows["cost"].to_numpy(), starts)
            tokens += 2 * self.files.queries.column("cost").to_numpy()[query[starts]]  # it may stand at both ends
            ends = np.append(starts[1:], len(query))
            costs[ends - 1] = list_costs(tokens, ends - starts, self.limits.listwise or Listwise())
        return costs

    def _sizes(self, leads: pa.Table) -> dict[str, int]:
        """Totals of the documents of new lists. `pairwise_cost`: were each pair read alone."""
        queries = self.files.queries.column("cost").to_numpy()[leads["query"].to_numpy()]
        documents = leads.group_by("doc_hash").aggregate([(name, "max") for name in ("bytes", "patches")])
        row_groups = leads.group_by(_names(LOCATION[:2])).aggregate([("row_group_bytes", "max")])
        sums = (documents["patches_max"], documents["bytes_max"], row_groups["row_group_bytes_max"])
        totals = [pc.sum(column, min_count=0).as_py() for column in sums]
        sizes = dict(zip(("patches", "fetch_bytes", "read_bytes"), totals, strict=True))
        pairwise_cost = int(leads["cost"].to_numpy().sum() + queries.sum())
        return sizes | {"new_documents": documents.num_rows, "pairwise_cost": pairwise_cost}


def _names(fields: Sequence[object]) -> list[str]:
    return list(pa.schema(fields).names)


def _stored_in(lists: pa.Array, contents: Int64, stored: pa.Table) -> tuple[pa.Array, pa.Array]:
    """For each list (L,) of so many contents the unit that has all its scores, and one that it was scored in in vain;
    null for none."""
    stored = stored.filter(pc.is_in(stored["query_hash"], lists))
    transient = pc.is_in(stored["reason"], pa.array(sorted(reason.value for reason in TRANSIENT_REASONS)))
    lasting = stored.filter(pc.invert(transient)).group_by(["query_hash", "unit"]).aggregate([("doc_hash", "count")])
    required = contents[pc.index_in(lasting["query_hash"], lists).to_numpy()]
    whole = lasting.filter(pa.array(lasting["doc_hash_count"].to_numpy() == required))

    def unit_of(rows: pa.Table) -> pa.Array:
        units = rows.group_by("query_hash").aggregate([("unit", "max")]).combine_chunks()
        return units["unit_max"].combine_chunks().take(pc.index_in(lists, units["query_hash"].combine_chunks()))

    return unit_of(whole), unit_of(stored)


@dataclass(frozen=True, slots=True)
class ListInput:
    """What lists are made of: a plan's folder with `pairs/`, LISTED rows with their order, and the scores there are."""

    folder: str
    order: Sequence[Rows]
    scores: ScoreIndex


def split_lists(runner: Runner, splitter: ListSplitter, given: ListInput, partitions: Partitions, bits: int) -> Counts:
    """Split lists as `split_pairs` does pairs. Pairs meet by document, then by query, then by list, in 2^bits parts."""
    storage, files, scores = splitter.documents.storage, splitter.files, given.scores

    def pairs(name: str) -> Iterator[pa.RecordBatch]:
        rows = read_part(storage, join(given.folder, "pairs", name), PAIRS)
        yield from pack(PAIR, partitions.of(rows["document"].to_numpy()), rows)

    def locate(_: int, tables: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        yield from by_query(PAIR, splitter.locate(tables[PAIR]), files)

    def place(_: int, tables: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        rows = splitter.place(tables[PAIR], tables[LIST_ORDER])
        yield from pack(PAIR, hash_parts(rows["list"], bits), rows)

    def stored(name: str) -> Iterator[pa.RecordBatch]:
        rows = scores.stored(name)
        yield from pack(SCORE, hash_parts(rows["query_hash"], bits), rows)

    def split(part: int, tables: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        yield from write_split(storage, given.folder, part, *splitter.split(tables[PAIR], tables[SCORE]))

    rows = runner.scatter(storage.list_names(join(given.folder, "pairs")), pairs, BATCHES)
    located = runner.exchange([rows], partitions.count, {PAIR: PAIRS}, locate, BATCHES)
    kinds = {PAIR: LOCATED, LIST_ORDER: LISTED}
    placed = runner.exchange([located, *given.order], len(files.firsts) + 1, kinds, place, BATCHES)
    known = runner.scatter(scores.names, stored, BATCHES, tasks=8 * runner.parallelism)
    kinds = {PAIR: PLACED, SCORE: INDEXED_SCORES}
    return runner.summed(runner.exchange([placed, known], 2**bits, kinds, split, COUNTS))
