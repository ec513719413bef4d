"""Judge a run in Spark: rows of every table meet by query, and only sums come back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc
from pyspark import TaskContext
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from lakerank.evaluation.attributes import known_modality
from lakerank.evaluation.inputs import Inputs, pieces
from lakerank.evaluation.partials import PARTIAL, Judged, Rule, collect, judge_block, merge
from lakerank.evaluation.report.query_figures import keep_parts, write_part
from lakerank.evaluation.rows import MODALITIES, ROWS, Source, document_modalities, query_rows, table_rows
from lakerank.lake.runs import RunPaths
from lakerank.lake.storage import Storage
from lakerank.spark.runtime.frames import describe_job, gather, parallelism, scatter

logger = logging.getLogger(__name__)

#: Rows that a worker judges at once, and rows that a task sorts.
BLOCK_ROWS = 250_000
_TASK_ROWS = 3_000_000

#: Up to so many rows a table is sent to every executor rather than shuffled.
_BROADCAST_ROWS = 500_000

_KNOWN = pa.schema([pa.field("modality", pa.int8())])
_WRITTEN = "written"


def judge_in_spark(spark: SparkSession) -> Callable[[Storage, Inputs], Judged]:
    """What `lakerank.evaluation.evaluation.evaluate` takes to judge in Spark."""
    return lambda storage, inputs: judge(spark, storage, inputs)


def judge(spark: SparkSession, storage: Storage, inputs: Inputs) -> Judged:
    """Judge whole queries where their rows meet; the same figures as in one process, whatever the partitions.

    Writes the figures query by query, a file a task. A worker holds BLOCK_ROWS rows, and the sums of every slice.
    """
    rows = brought_together(_all_rows(spark, storage, inputs), _tasks(spark, inputs))
    judged = rows.mapInArrow(_judge_partition(storage, inputs.paths, inputs.rule), from_arrow_schema(PARTIAL))
    describe_job(spark, "evaluate: judge")
    merged = judged.groupBy("kind", "key").applyInArrow(merge, from_arrow_schema(PARTIAL)).toArrow()
    is_note = pc.equal(merged["kind"], _WRITTEN)
    keep_parts(storage, inputs.paths, [int(number) for number in merged.filter(is_note)["key"].to_pylist()])
    return collect([merged.filter(pc.invert(is_note)).cast(PARTIAL)])


def brought_together(rows: DataFrame, tasks: int) -> DataFrame:
    """The rows of a query in one task, in the order of `lakerank.evaluation.pairs.pair_up`."""
    return rows.repartition(tasks, "query_id").sortWithinPartitions("query_id", "doc_id")


def _tasks(spark: SparkSession, inputs: Inputs) -> int:
    return max(parallelism(spark), -(-inputs.rows // _TASK_ROWS))


def _all_rows(spark: SparkSession, storage: Storage, inputs: Inputs) -> DataFrame:
    def of_table(source: Source) -> DataFrame:
        def read(piece: tuple[str, int]) -> Iterator[pa.RecordBatch]:
            yield from table_rows(storage, source, *piece)

        return scatter(spark, inputs.pieces(source), read, ROWS, tasks=4 * parallelism(spark))

    def read_queries(piece: tuple[str, int]) -> Iterator[pa.RecordBatch]:
        yield from query_rows(storage, *piece, inputs.labels)

    queries = scatter(spark, inputs.pieces(Source.QUERY), read_queries, ROWS, tasks=4 * parallelism(spark))
    qrels = of_table(Source.QREL)
    lists = [_with_modalities(spark, storage, inputs, of_table(Source.CANDIDATE)), of_table(Source.RANKED)]
    if inputs.against is not None:
        lists.append(of_table(Source.AGAINST))
    if _rows_of(inputs, Source.QREL) <= _BROADCAST_ROWS:
        # Lists of queries that nobody judged need not travel.
        judged = F.broadcast(qrels.select("query_id").distinct())
        lists = [one.join(judged, "query_id", "left_semi") for one in lists]
    rows = queries.unionByName(qrels)
    for one in lists:
        rows = rows.unionByName(one)
    return rows


def _rows_of(inputs: Inputs, source: Source) -> int:
    return sum(fragment.rows for fragment in inputs.files[source])


def _with_modalities(spark: SparkSession, storage: Storage, inputs: Inputs, candidates: DataFrame) -> DataFrame:
    """Candidates with what their documents hold; most lakes hold one modality, which the files' footers tell."""
    groups = pieces(inputs.documents)

    def known(piece: tuple[str, int]) -> Iterator[pa.RecordBatch]:
        yield pa.RecordBatch.from_pydict({"modality": [known_modality(storage, *piece)]}, schema=_KNOWN)

    describe_job(spark, "evaluate: what documents hold")
    found = pc.unique(gather(spark, groups, known, _KNOWN, tasks=4 * parallelism(spark))["modality"]).to_pylist()
    if len(found) == 1 and found[0] is not None:
        return candidates.withColumn("modality", F.lit(found[0]).cast("tinyint"))

    def read(piece: tuple[str, int]) -> Iterator[pa.RecordBatch]:
        yield from document_modalities(storage, *piece)

    documents = scatter(spark, groups, read, MODALITIES, tasks=4 * parallelism(spark))
    documents = documents.groupBy("doc_id").agg(F.max("modality").alias("modality"))
    if sum(fragment.rows for fragment in inputs.documents) <= _BROADCAST_ROWS:
        documents = F.broadcast(documents)
    return candidates.drop("modality").join(documents, "doc_id", "left")


def _judge_partition(
    storage: Storage, paths: RunPaths, rule: Rule
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        partials, figures = PARTIAL.empty_table(), []
        for rows in whole_queries(batches, BLOCK_ROWS):
            found, by_query = judge_block(rows.select(ROWS.names).cast(ROWS), rule)
            partials = merge(pa.concat_tables([partials, found]))
            figures.append(by_query)
        if not figures:
            return
        context = TaskContext.get()
        part = context.partitionId() if context else 0
        write_part(storage, paths, part, pa.concat_tables(figures))
        yield from partials.to_batches()
        yield pa.RecordBatch.from_pylist([{"kind": _WRITTEN, "key": str(part)}], schema=PARTIAL)

    return run


def whole_queries(batches: Iterable[pa.RecordBatch], block_rows: int) -> Iterator[pa.Table]:
    """Batches sorted by query as tables of about so many rows, none of which ends within a query."""
    held: list[pa.Table] = []
    rows = 0
    for batch in batches:
        held.append(pa.Table.from_batches([batch]))
        rows += batch.num_rows
        if rows < block_rows:
            continue
        table = pa.concat_tables(held)
        last = pc.index(table["query_id"], table["query_id"][-1]).as_py()
        if last:
            yield table.slice(0, last)
        held, rows = [table.slice(last)], table.num_rows - last
    if rows:
        yield pa.concat_tables(held)
