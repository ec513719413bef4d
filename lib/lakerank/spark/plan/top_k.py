"""The pairs that a later pass of a run scores: of all of the first plan's, or of the best of each query so far."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import SparkSession

from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import parquet_bytes
from lakerank.ranking import ranks
from lakerank.spark.plan.files import COUNTS, Counts, counted, counts_of, part_name, read_part, summed
from lakerank.spark.plan.pairs import PAIRS, flat, grouped
from lakerank.spark.plan.ranges import Stripes
from lakerank.spark.rank.lists import SCORED_KIND, Lists, Results, result_frames, scored_batches
from lakerank.spark.rank.write import SCORED, rank_order
from lakerank.spark.runtime.frames import describe_job, scatter
from lakerank.spark.runtime.shuffle import BATCHES, exchange, key_hash, pack, part_of

_BEST = pa.schema([("doc_id", pa.string()), ("query", pa.int32())])
_BEST_KIND = 0
_ROW_GROUP_ROWS = 100_000

Int64 = npt.NDArray[np.int64]


def count_pairs(spark: SparkSession, storage: Storage, folder: str, stripes: Stripes) -> Counts:
    """Pairs of a plan's `pairs/`: `candidates` and `documents` under 0, and numbers of pairs by stripe."""

    def count(name: str) -> Iterator[pa.RecordBatch]:
        yield from _counts(read_part(storage, join(folder, "pairs", name), PAIRS), stripes)

    describe_job(spark, "plan: count pairs")
    return summed(scatter(spark, storage.list_names(join(folder, "pairs")), count, COUNTS))


def write_best_pairs(
    spark: SparkSession,
    results: Results,
    lists: Lists,
    top: int,
    pairs_in: str,
    folder: str,
    stripes: Stripes,
    bits: int,
) -> Counts:
    """Leave the `top` best pairs of each query in `pairs/`, in as many parts as those of the plan they are taken from.

    Best by the results of a pass: logit descending, then doc_id; what it rejected is not among them.

    Args:
        pairs_in: the plan folder with the pairs, in 2^bits parts.

    Returns:
        The same counts as `count_pairs`.
    """
    storage = results.storage

    def choose(_: int, tables: dict[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        best = _best(tables[SCORED_KIND], top)
        hashes = key_hash(best["doc_id"].combine_chunks())
        order = np.argsort(hashes, kind="stable")
        yield from pack(_BEST_KIND, part_of(hashes[order], bits), best.take(pa.array(order)))

    def keep(part: int, tables: dict[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        if not tables[_BEST_KIND].num_rows:
            return
        kept = only(read_part(storage, join(pairs_in, "pairs", part_name(part)), PAIRS), tables[_BEST_KIND])
        storage.replace(join(folder, "pairs", part_name(part)), parquet_bytes(kept, _ROW_GROUP_ROWS))
        yield from _counts(kept, stripes)

    describe_job(spark, f"plan: the {top} best of each query")
    scored = result_frames(
        spark, results, lists, lambda rows: scored_batches(rows.filter(pc.is_valid(rows["logit"])), lists)
    )
    best = exchange(scored, len(lists.firsts) + 1, {SCORED_KIND: SCORED}, choose, BATCHES)
    return summed(exchange([best], 2**bits, {_BEST_KIND: _BEST}, keep, COUNTS))


def only(pairs: pa.Table, chosen: pa.Table) -> pa.Table:
    """Those of some PAIRS that are named by `doc_id` and `query`."""
    rows, queries, first_stage = flat(pairs)
    found = pc.index_in(chosen["doc_id"].combine_chunks(), value_set=pairs["doc_id"].combine_chunks())
    wanted = (found.fill_null(-1).to_numpy().astype(np.int64) << 32) | chosen["query"].to_numpy()
    kept = np.isin((rows << 32) | queries, wanted)
    documents, query_lists, rank_lists = grouped(rows[kept], queries[kept], first_stage[kept])
    of = pairs.take(pa.array(documents))
    return pa.Table.from_arrays([of["doc_id"], of["document"], query_lists, rank_lists], schema=PAIRS)


def _best(scored: pa.Table, top: int) -> pa.Table:
    query = scored["query"].to_numpy().astype(np.int64)
    order = rank_order(query, scored["logit"].to_numpy(), scored["doc_id"].combine_chunks())
    rank = ranks(np.diff(query[order], prepend=-1) != 0)
    return scored.select(_BEST.names).take(pa.array(order[rank <= top])).combine_chunks()


def _counts(pairs: pa.Table, stripes: Stripes) -> Iterator[pa.RecordBatch]:
    rows, _, _ = flat(pairs)
    yield counts_of({"candidates": {0: len(rows)}, "documents": {0: pairs.num_rows}})
    yield counted("stripe", stripes.of(pairs["document"].to_numpy()[rows]))
