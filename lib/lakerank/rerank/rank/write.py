"""One file of ranked lists and one of rejects: sorted, ranked, labelled, written and reported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lakerank.audit import HISTOGRAM_EDGES
from lakerank.lake.ids import with_types
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import parquet_bytes
from lakerank.plan.plan import part_name
from lakerank.ranking import best_of_groups, labels, log_odds, ranks, relevance
from lakerank.schemas import MEMBERSHIPS, NO_RANK, RANKED, REJECTED

#: A scored pair: the query by number, the first-stage rank, whether this run scored it, and the document's group id.
SCORED = pa.schema([
    ("query", pa.int32()), ("doc_id", pa.string()), ("rank", pa.int32()), ("logit", pa.float32()),
    ("truncated", pa.bool_()), ("new", pa.bool_()), *MEMBERSHIPS,
])  # fmt: skip

#: One row a written file. `queries_listed` counts the queries that have candidates in it, ranked or not; `new` the
#: pairs that this run scored; `values` the rows by label or reason; `stages` the results by stage and reason, null
#: for a score; `golden` has the logits of golden pairs.
FILE_REPORT = pa.schema([
    ("table", pa.string()), ("file", pa.string()), ("rows", pa.int64()), ("bytes", pa.int64()),
    ("queries", pa.int64()), ("queries_listed", pa.int64()), ("new", pa.int64()), ("beyond_depth", pa.int64()),
    ("beyond_group", pa.int64()), ("collapsed", pa.int64()), ("repeated", pa.int64()), ("truncated", pa.int64()),
    ("histogram", pa.list_(pa.int64())),
    ("values", pa.list_(pa.struct([("value", pa.string()), ("count", pa.int64())]))),
    ("stages", pa.list_(pa.struct([("stage", pa.int8()), ("reason", pa.string()), ("count", pa.int64())]))),
    ("golden", pa.list_(pa.struct([("query_id", pa.string()), ("doc_id", pa.string()), ("logit", pa.float32())]))),
])  # fmt: skip

#: Rows of a row group in ranked/: a reader looking up one query reads little.
ROW_GROUP_ROWS = 50_000

Int64 = npt.NDArray[np.int64]

#: What becomes of a list's documents that are near duplicates of a better one: nothing, `duplicate_of`, left out.
Duplicates = Literal["keep", "mark", "collapse"]


@dataclass(frozen=True, slots=True)
class RankRule:
    """How one scorer's logits become relevance, labels and ranks."""

    logit_bias: float
    thresholds: tuple[float, ...]
    depth: int | None
    per_group: int | None = None
    duplicates: Duplicates = "keep"


def rank_order(query: Int64, logit: npt.NDArray[np.float32], doc_id: pa.Array) -> Int64:
    """The order of ranked lists: by query, logit descending, doc_id: (N,) each -> (N,). Few logits are equal."""
    order = np.lexsort((-logit, query))
    query, logit = query[order], logit[order]
    same = np.flatnonzero((query[1:] == query[:-1]) & (logit[1:] == logit[:-1]))
    if not len(same):
        return order
    tied = np.union1d(same, same + 1)
    run = np.cumsum(~np.isin(tied, same + 1))
    keys = pa.table({"run": run, "doc_id": doc_id.take(pa.array(order[tied]))})
    by_id = pc.sort_indices(keys, sort_keys=[("run", "ascending"), ("doc_id", "ascending")]).to_numpy()
    order[tied] = order[tied][by_id]
    return order


@dataclass(frozen=True, slots=True)
class FileLists:
    """All of a file's scored pairs in order, as RANKED or COMBINED, and MEMBERSHIPS; `new` were scored by this run.

    `fused`: their `logit` is a fused score, which no histogram of logits is made of. `stages` counts the results of
    each stage of a cascade or an ensemble, as FILE_REPORT has them.
    """

    rows: pa.Table
    new: int
    fused: bool = False
    stages: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, slots=True)
class ListFolders:
    """Where lists are written, down to which rank, with how many documents of a group, what becomes of duplicates,
    with ids of which types, and the pairs whose logits the report gives."""

    storage: Storage
    ranked: str
    rejected: str
    depth: int | None
    per_group: int | None
    duplicates: Duplicates
    id_types: Mapping[str, str]
    golden: frozenset[tuple[str, str]] = frozenset()


def rank_pairs(scored: pa.Table, ids: tuple[int, pa.Array], rule: RankRule) -> FileLists:
    """The lists of a run of one scorer.

    Args:
        scored: SCORED.
        ids: the number of the file's first query, and the ids of all its queries.
    """
    first, names = ids
    query = scored["query"].to_numpy().astype(np.int64)
    order = rank_order(query, scored["logit"].to_numpy(), scored["doc_id"].combine_chunks())
    rows, query = scored.take(pa.array(order)), query[order]
    relevances = relevance(rows["logit"].to_numpy(), rule.logit_bias)
    columns = {
        "query_id": names.take(pa.array(query - first)),
        "rank": pa.array(ranks(np.diff(query, prepend=-1) != 0)),
        "relevance": pa.array(relevances),
        "label": pa.array(labels(relevances, rule.thresholds)),
        "first_stage_rank": first_stage_ranks(rows["rank"]),
    }
    schema = pa.schema([*RANKED, *MEMBERSHIPS])
    arrays = [columns[name] if name in columns else rows[name] for name in schema.names]
    return FileLists(pa.Table.from_arrays(arrays, schema=schema), pc.sum(scored["new"]).as_py() or 0)


def first_stage_ranks(ranks_there: pa.ChunkedArray) -> pa.ChunkedArray:
    """First-stage ranks as they are published: null for none."""
    return pc.if_else(pc.equal(ranks_there, NO_RANK), pa.scalar(None, pa.int32()), ranks_there)


def write_file(folders: ListFolders, number: int, lists: FileLists, rejects: pa.Table) -> Iterator[pa.RecordBatch]:
    """One file in each folder; yields one row of FILE_REPORT each."""
    table, depth = lists.rows, folders.depth
    marked, repeated = _without_duplicates(table, folders.duplicates)
    kept = _best_of_groups(marked, "group_id", folders.per_group)
    within = kept if depth is None else kept.filter(pc.less_equal(kept["rank"], depth))
    rejects = rejects.sort_by([("query_id", "ascending"), ("doc_id", "ascending")]).cast(REJECTED)
    sizes = []
    types = {**folders.id_types, "duplicate_of": folders.id_types.get("doc_id", "string")}
    for folder, rows in ((folders.ranked, with_types(within, types)), (folders.rejected, rejects)):
        data = parquet_bytes(rows, ROW_GROUP_ROWS)
        folders.storage.replace(join(folder, part_name(number)), data)
        sizes.append(len(data))
    logits = log_odds(table["relevance"].to_numpy()) if lists.fused else table["logit"].to_numpy()
    ids = pa.chunked_array([*table["query_id"].chunks, *rejects["query_id"].chunks], pa.string())
    figures = {
        "queries_listed": len(pc.unique(ids).drop_null()),
        "new": lists.new,
        "beyond_depth": kept.num_rows - within.num_rows,
        "beyond_group": marked.num_rows - kept.num_rows,
        "collapsed": table.num_rows - marked.num_rows,
        "repeated": repeated,
        "truncated": pc.sum(within["truncated"]).as_py() or 0,
        "histogram": _histogram(logits),
        "golden": _logits_of(table, folders.golden),
        "stages": list(lists.stages),
    }
    yield _report("ranked", number, within, "label", figures | {"bytes": sizes[0]})
    yield _report("rejected", number, rejects, "reason", {"bytes": sizes[1]})


def _without_duplicates(table: pa.Table, duplicates: Duplicates) -> tuple[pa.Table, int]:
    """A file's lists without duplicates, or with `duplicate_of`; and how many of their rows are such."""
    queries, clusters = (_numbers(table[name]) for name in ("query_id", "cluster"))
    first = best_of_groups(queries, clusters, 1)
    repeated = int((~first).sum())
    if duplicates == "collapse":
        return _best_of_groups(table, "cluster", 1), repeated
    marked = table.drop_columns("cluster")
    if duplicates == "mark":
        order = np.lexsort((clusters, queries))  # stable: the best of a cluster comes first
        best = np.empty(len(order), np.int64)
        best[order] = order[np.maximum.accumulate(np.where(first[order], np.arange(len(order)), 0))]
        ids = table["doc_id"].combine_chunks().take(pa.array(best, mask=first))
        marked = marked.append_column("duplicate_of", ids)
    return marked, repeated


def _numbers(column: pa.ChunkedArray) -> Int64:
    return np.asarray(column.combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy(), dtype=np.int64)


def _best_of_groups(table: pa.Table, name: str, most: int | None) -> pa.Table:
    """The first `most` pairs of each group in each list, ranked anew; without group ids where nothing is left out.

    `name`: the column of groups; that of clusters is dropped in any case.
    """
    if most is None:
        return table.drop_columns(name)
    queries, groups = (_numbers(table[column]) for column in ("query_id", name))
    kept = best_of_groups(queries, groups, most)
    table = table.drop_columns("cluster") if name == "cluster" else table
    rank = pa.array(ranks(np.diff(queries[kept], prepend=-1) != 0))
    return table.filter(pa.array(kept)).set_column(table.column_names.index("rank"), table.schema.field("rank"), rank)


def _logits_of(table: pa.Table, pairs: frozenset[tuple[str, str]]) -> list[dict[str, object]]:
    """Logits of a few pairs, where the table has them."""
    if not pairs:
        return []
    queries, documents = (pa.array(sorted({pair[at] for pair in pairs})) for at in (0, 1))
    near = pc.and_(pc.is_in(table["query_id"], queries), pc.is_in(table["doc_id"], documents))
    rows = table.filter(near).select(["query_id", "doc_id", "logit"]).to_pylist()
    return [row for row in rows if (row["query_id"], row["doc_id"]) in pairs]


def _histogram(logits: npt.NDArray[np.float32]) -> list[int]:
    """What the next run's score drift is measured by: counts of the logits, or of the log odds of fused relevances, of
    pairs within the depth and beyond it."""
    bins = np.searchsorted(np.asarray(HISTOGRAM_EDGES[1:-1]), logits, side="right")
    return [int(count) for count in np.bincount(bins, minlength=len(HISTOGRAM_EDGES) - 1)]


def _report(table: str, number: int, rows: pa.Table, counted: str, figures: Mapping[str, object]) -> pa.RecordBatch:
    values = pc.value_counts(rows[counted].cast(pa.string()).combine_chunks()).to_pylist()
    row = {
        "table": table,
        "file": part_name(number),
        "rows": rows.num_rows,
        "queries": len(pc.unique(rows["query_id"])),
        "values": [{"value": item["values"], "count": item["counts"]} for item in values],
    }
    return pa.RecordBatch.from_pylist([row | dict(figures)], schema=FILE_REPORT)
