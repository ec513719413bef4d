"""One file of ranked lists and one of rejects: sorted, ranked, labelled, written, and reported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lakerank.audit import HISTOGRAM_EDGES
from lakerank.fusion import log_odds
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import parquet_bytes
from lakerank.ranking import labels, ranks, relevance
from lakerank.schemas import RANKED, REJECTED
from lakerank.spark.plan.files import part_name
from lakerank.spark.plan.join import NO_RANK

#: A scored pair on its way to its query's list: the query by number, the first-stage rank, whether it is of this run.
SCORED = pa.schema(
    [
        ("query", pa.int32()),
        ("doc_id", pa.string()),
        ("rank", pa.int32()),
        ("logit", pa.float32()),
        ("truncated", pa.bool_()),
        ("own", pa.bool_()),
    ]
)

#: One row a written file. `candidates_of` counts the queries that have candidates in it, ranked or not.
FILE_REPORT = pa.schema(
    [
        ("table", pa.string()),
        ("file", pa.string()),
        ("rows", pa.int64()),
        ("bytes", pa.int64()),
        ("queries", pa.int64()),
        ("candidates_of", pa.int64()),
        ("own", pa.int64()),
        ("beyond_depth", pa.int64()),
        ("truncated", pa.int64()),
        ("histogram", pa.list_(pa.int64())),
        ("counts", pa.map_(pa.string(), pa.int64())),
        ("passes", pa.map_(pa.string(), pa.int64())),
        (
            "watched",
            pa.list_(pa.struct([("query_id", pa.string()), ("doc_id", pa.string()), ("logit", pa.float32())])),
        ),
    ]
)

#: Rows of a row group in ranked/: a reader looking up one query reads little.
ROW_GROUP_ROWS = 50_000

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RankRule:
    """How one scorer's logits become relevance, labels and ranks."""

    logit_bias: float
    thresholds: tuple[float, ...]
    depth: int | None


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
class Listed:
    """All of a file's scored pairs in order, as RANKED or COMBINED; how many of them this run has scored itself.

    `fused`: their `logit` is a fused score, which no histogram of logits is made of. `passes` counts each pass's
    results: those with a score under its number, the others under its number and their reason.
    """

    rows: pa.Table
    own: int
    fused: bool = False
    passes: Mapping[str, int] = field(default_factory=dict)


def single_list(scored: pa.Table, ids: tuple[int, pa.Array], rule: RankRule) -> Listed:
    """The list of a run of one scorer.

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
    table = pa.Table.from_arrays(
        [columns[name] if name in columns else rows[name] for name in RANKED.names], schema=RANKED
    )
    return Listed(table, pc.sum(scored["own"]).as_py() or 0)


def first_stage_ranks(ranks_there: pa.ChunkedArray) -> pa.ChunkedArray:
    """First-stage ranks as they are published: null for none."""
    return pc.if_else(pc.equal(ranks_there, NO_RANK), pa.scalar(None, pa.int32()), ranks_there)


def write_file(
    storage: Storage,
    number: int,
    listed: Listed,
    rejects: pa.Table,
    depth: int | None,
    ranked: str,
    rejected: str,
    watched: frozenset[tuple[str, str]],
) -> Iterator[pa.RecordBatch]:
    """One file of each folder; one row of FILE_REPORT each."""
    table = listed.rows
    within = table if depth is None else table.filter(pc.less_equal(table["rank"], depth))
    rejects = rejects.sort_by([("query_id", "ascending"), ("doc_id", "ascending")]).cast(REJECTED)
    sizes = []
    for folder, rows in ((ranked, within), (rejected, rejects)):
        data = parquet_bytes(rows, ROW_GROUP_ROWS)
        storage.replace(join(folder, part_name(number)), data)
        sizes.append(len(data))
    ids = pc.unique(table["query_id"])
    others = pc.unique(rejects["query_id"]).drop_null()
    candidates_of = (
        len(ids) + len(others) - pc.sum(pc.is_in(others, value_set=ids)).as_py() if len(others) else len(ids)
    )
    about = {
        "table": "ranked",
        "bytes": sizes[0],
        "candidates_of": candidates_of,
        "own": listed.own,
        "beyond_depth": table.num_rows - within.num_rows,
        "truncated": pc.sum(within["truncated"]).as_py() or 0,
        "histogram": _histogram(_on_logit_scale(within, listed.fused)),
        "watched": _watched(table, watched),
        "passes": sorted(listed.passes.items()),
    }
    yield _report(number, within, "label", about)
    yield _report(number, rejects, "reason", {"table": "rejected", "bytes": sizes[1]})


def _on_logit_scale(rows: pa.Table, fused: bool) -> npt.NDArray[np.float32]:
    """What the next run's score drift is measured by: logits; where a list is fused, the log odds of its relevances."""
    return log_odds(rows["relevance"].to_numpy()) if fused else rows["logit"].to_numpy()


def _watched(table: pa.Table, watched: frozenset[tuple[str, str]]) -> list[dict[str, object]]:
    """Logits of the pairs that are watched; they are few."""
    if not watched:
        return []
    near = pc.and_(
        *(
            pc.is_in(table[name], pa.array(sorted({pair[at] for pair in watched})))
            for at, name in enumerate(("query_id", "doc_id"))
        )
    )
    rows = table.filter(near).select(["query_id", "doc_id", "logit"]).to_pylist()
    return [row for row in rows if (row["query_id"], row["doc_id"]) in watched]


def _histogram(logits: npt.NDArray[np.float32]) -> list[int]:
    bins = np.searchsorted(np.asarray(HISTOGRAM_EDGES[1:-1]), logits, side="right")
    return [int(count) for count in np.bincount(bins, minlength=len(HISTOGRAM_EDGES) - 1)]


def _report(number: int, rows: pa.Table, counted: str, about: dict[str, object]) -> pa.RecordBatch:
    counts = pc.value_counts(rows[counted].cast(pa.string()).combine_chunks())
    zeros = dict.fromkeys(("candidates_of", "own", "beyond_depth", "truncated"), 0)
    row = zeros | {
        "file": part_name(number),
        "rows": rows.num_rows,
        "queries": len(pc.unique(rows["query_id"])),
        "histogram": _histogram(np.zeros(0, np.float32)),
        "counts": [(item["values"], item["counts"]) for item in counts.to_pylist()],
        "watched": [],
        "passes": [],
    }
    return pa.RecordBatch.from_pylist([row | about], schema=FILE_REPORT)
