"""What a later pass of a cascade costs at most, told before the passes before it have scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyspark.sql import SparkSession

from lakerank.lake.storage import Storage, join
from lakerank.spark.plan.files import COUNTS, counted, counts_of, pair_blocks, read_part, summed
from lakerank.spark.plan.index import PLACE_BITS, TableIndex
from lakerank.spark.plan.pairs import PAIRS, flat
from lakerank.spark.plan.partitions import GROUP_KIND, PLACED_PAIRS
from lakerank.spark.plan.plan import PlanLimits
from lakerank.spark.plan.ranges import even_edges, stripes_of
from lakerank.spark.rank.lists import Lists
from lakerank.spark.runtime.frames import describe_job, scatter
from lakerank.spark.runtime.shuffle import BATCHES, exchange, pack

_LISTED = pa.schema([("query", pa.int32())])
_LISTED_KIND = 0


@dataclass(frozen=True, slots=True)
class Bound:
    """The most that scoring the `top` best of each query can take, whichever they are and none of them scored yet.

    Attributes:
        pairs: so many of each query, or all that it has.
        documents: as many as there are pairs, or all there are.
        cost: tokens of the pairs' queries, and of the costliest documents.
        pairwise_cost: the same with a document read again for each query.
    """

    pairs: int
    documents: int
    cost: int
    pairwise_cost: int


def upper_bound(
    spark: SparkSession,
    storage: Storage,
    folder: str,
    documents: TableIndex,
    lists: Lists,
    top: int,
    limits: PlanLimits,
) -> Bound:
    """Bound a pass over the `top` best of each query of a plan.

    Args:
        folder: the plan's, whose `pairs/` the pass's candidates are among.
        limits: of the pass. A document is read once a group of its queries, or where it is not shared once a pair.
    """
    describe_job(spark, "plan: bound the passes to come")
    pairs, query_tokens = _of_queries(spark, storage, folder, lists, top)
    found = _of_documents(spark, storage, folder, documents, limits.max_queries_per_group)
    shared = query_tokens + costliest(found.get("group", {}), pairs)
    pairwise = query_tokens + costliest(found.get("pair", {}), pairs)
    read_once = all(reading.document_major for reading in limits.readings)
    known = sum(found.get("document", {}).values())
    return Bound(pairs, min(pairs, known), shared if read_once else pairwise, pairwise)


def costliest(numbers: Mapping[int, int], most: int) -> int:
    """Cost of the `most` costliest of some things, told how many there are of each cost."""
    total = 0
    for cost in sorted(numbers, reverse=True):
        taken = min(most, numbers[cost])
        total, most = total + cost * taken, most - taken
    return total


def _of_queries(spark: SparkSession, storage: Storage, folder: str, lists: Lists, top: int) -> tuple[int, int]:
    """How many pairs there can be, and the tokens of their queries."""

    def read(name: str) -> Iterator[pa.RecordBatch]:
        _, queries, _ = flat(read_part(storage, join(folder, "pairs", name), PAIRS))
        ordered = np.sort(queries)
        rows = pa.Table.from_arrays([pa.array(ordered.astype(np.int32))], schema=_LISTED)
        yield from pack(_LISTED_KIND, lists.of_numbers(ordered), rows)

    def count(_: int, tables: dict[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        distinct, listed = np.unique(tables[_LISTED_KIND]["query"].to_numpy(), return_counts=True)
        kept = np.minimum(listed, top)
        costs = lists.queries.column("cost").to_numpy()[distinct]
        yield counts_of({"pairs": {0: int(kept.sum())}, "tokens": {0: int((kept * costs).sum())}})

    blocks = scatter(spark, storage.list_names(join(folder, "pairs")), read, BATCHES)
    totals = summed(exchange([blocks], len(lists.firsts) + 1, {_LISTED_KIND: _LISTED}, count, COUNTS))
    return totals.get("pairs", {}).get(0, 0), totals.get("tokens", {}).get(0, 0)


def _of_documents(
    spark: SparkSession, storage: Storage, folder: str, documents: TableIndex, max_queries: int
) -> Mapping[str, Mapping[int, int]]:
    """How many documents, groups of them, and pairs there are of each cost in tokens of the document."""
    parts = storage.list_names(join(folder, "pairs"))
    stripes = stripes_of(documents.chunks)
    # As many bins as parts, of neighbouring stripes: each reads the index of its own documents.
    last = int(stripes.first[-1] + stripes.count[-1]) if len(stripes.first) else 1
    edges = even_edges(dict.fromkeys(range(last), 1), max(1, len(parts)))

    def count(_: int, tables: dict[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        rows = tables[GROUP_KIND]
        numbers, listed = rows["document"].to_numpy(), rows["queries"].combine_chunks().value_lengths().to_numpy()
        for chunk in np.unique(numbers >> PLACE_BITS).tolist():
            inside = numbers >> PLACE_BITS == chunk
            places = numbers[inside] & ((1 << PLACE_BITS) - 1)
            costs = documents.read(chunk, ["text_bytes"])["cost"].to_numpy()[places]
            yield counted("document", costs)
            yield counted("group", np.repeat(costs, -(-listed[inside] // max_queries)))
            yield counted("pair", np.repeat(costs, listed[inside]))

    blocks = pair_blocks(spark, storage, folder, stripes, edges)
    return summed(exchange([blocks], len(edges) + 1, {GROUP_KIND: PLACED_PAIRS}, count, COUNTS))
