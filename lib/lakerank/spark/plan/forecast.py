"""The upper bound of what a later stage of a cascade costs, before the stages before it have been scored."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
from pyspark.sql import SparkSession

from lakerank.fingerprint import fingerprint
from lakerank.lake.runs import read_json
from lakerank.lake.storage import Storage, join
from lakerank.plan.forecast import CostUpperBound, costliest
from lakerank.plan.index import TableIndex, chunks_and_rows
from lakerank.plan.pairs import PAIRS, flat
from lakerank.plan.partitions import DOCUMENT_PAIRS, PAIR, Partitions, document_ranges, even_edges
from lakerank.plan.plan import PlanLimits, RankedFiles, Tables, planned_documents, ranked_files, read_part
from lakerank.spark.plan.builder import PlanBuilder
from lakerank.spark.plan.counts import COUNTS, Counts, histogram, summed, total_of, totals
from lakerank.spark.plan.split import pair_records
from lakerank.spark.runtime.frames import describe_job, scatter
from lakerank.spark.runtime.shuffle import BATCHES, exchange, pack
from lakerank.spark.stage import PlannedStage, Stage

_QUERIES = pa.schema([("query", pa.int32())])
_QUERY = 0


def cost_upper_bound(
    spark: SparkSession, storage: Storage, tables: Tables, first: PlannedStage, number: int, stage: Stage
) -> CostUpperBound:
    """The most that stage `number`, over the top-k pairs of each query, can cost; computed once a run."""
    address = join(first.paths.of_stage(number).plan, "at_most.json")
    key = fingerprint({"first": first.plan.attempt, "top": stage.top, "limits": stage.limits.identity()})
    known = read_json(storage, address)
    if known is not None and known.pop("of") == key:
        return CostUpperBound(**known)
    builder = PlanBuilder(spark, storage, first.paths, first.plan.attempt, stage.limits)
    documents = builder.index("documents", planned_documents(storage, tables, first.paths, first.plan))
    files = ranked_files(storage, first.paths, first.plan)
    counter = PairCounter(storage, first.folder, documents, files, stage.top or first.plan.candidates, stage.limits)
    bound = counter.upper_bound(spark)
    storage.replace(address, json.dumps({"of": key} | asdict(bound)).encode())
    return bound


@dataclass(frozen=True, slots=True)
class PairCounter:
    """Counts the pairs of a plan folder, and what the costliest of them cost.

    Attributes:
        top: at most so many pairs of a query are scored.
        limits: of the stage. A document is read once a group of its queries, or where it is not shared once a pair.
    """

    storage: Storage
    folder: str
    documents: TableIndex
    files: RankedFiles
    top: int
    limits: PlanLimits

    def upper_bound(self, spark: SparkSession) -> CostUpperBound:
        """The most that scoring the top pairs of each query can cost."""
        describe_job(spark, "plan: cost upper bound of later stages")
        queries, documents = self._query_totals(spark), self._document_counts(spark)
        pairs, tokens = total_of(queries, "pairs"), total_of(queries, "tokens")
        shared = tokens + costliest(documents.get("group", {}), pairs)
        pairwise = tokens + costliest(documents.get("pair", {}), pairs)
        read_once = all(reading.document_major for reading in self.limits.readings)
        known = sum(documents.get("document", {}).values())
        return CostUpperBound(pairs, min(pairs, known), shared if read_once else pairwise, pairwise)

    def _query_totals(self, spark: SparkSession) -> Counts:
        """How many `pairs` there can be, and the `tokens` of their queries."""
        names = self.storage.list_names(join(self.folder, "pairs"))
        listed = scatter(spark, names, self._read_queries, BATCHES)
        return summed(exchange([listed], len(self.files.firsts) + 1, {_QUERY: _QUERIES}, self._count_queries, COUNTS))

    def _read_queries(self, name: str) -> Iterator[pa.RecordBatch]:
        _, queries, _ = flat(read_part(self.storage, join(self.folder, "pairs", name), PAIRS))
        ordered = np.sort(queries)
        rows = pa.Table.from_arrays([pa.array(ordered.astype(np.int32))], schema=_QUERIES)
        yield from pack(_QUERY, self.files.of_numbers(ordered), rows)

    def _count_queries(self, _: int, records: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        distinct, listed = np.unique(records[_QUERY]["query"].to_numpy(), return_counts=True)
        kept = np.minimum(listed, self.top)
        costs = self.files.queries.column("cost").to_numpy()[distinct]
        yield totals({"pairs": int(kept.sum()), "tokens": int((kept * costs).sum())})

    def _document_counts(self, spark: SparkSession) -> Counts:
        """How many documents, groups of them, and pairs there are of each cost in tokens of the document."""
        ranges = document_ranges(self.documents.chunks)
        parts = len(self.storage.list_names(join(self.folder, "pairs")))
        # As many partitions as parts, of neighbouring ranges: each reads the index of its own documents.
        partitions = Partitions(ranges, even_edges(dict.fromkeys(range(ranges.end), 1), max(1, parts)))
        pairs = pair_records(spark, self.storage, self.folder, partitions)
        return summed(exchange([pairs], partitions.count, {PAIR: DOCUMENT_PAIRS}, self._count_documents, COUNTS))

    def _count_documents(self, _: int, records: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        chunks, rows = chunks_and_rows(records[PAIR]["document"].to_numpy())
        listed = records[PAIR]["queries"].combine_chunks().value_lengths().to_numpy()
        for chunk in np.unique(chunks).tolist():
            inside = chunks == chunk
            costs = self.documents.read(chunk, ["text_bytes"])["cost"].to_numpy()[rows[inside]]
            yield histogram("document", costs)
            yield histogram("group", np.repeat(costs, -(-listed[inside] // self.limits.max_queries_per_group)))
            yield histogram("pair", np.repeat(costs, listed[inside]))
