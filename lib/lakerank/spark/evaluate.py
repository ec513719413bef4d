"""Reads what an evaluation needs in Spark: the rows of the judged queries, sorted, in blocks for one process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from lakerank.evaluation.evaluation import BLOCK_ROWS, Block, ReadBlocks
from lakerank.evaluation.inputs import Inputs, row_groups
from lakerank.evaluation.pairs import ROWS, InputTable, judged_only, whole_queries
from lakerank.evaluation.rows import MODALITIES, document_modalities, known_modality, query_rows, table_rows
from lakerank.lake.formats.snapshot import TableFile
from lakerank.lake.storage import Storage
from lakerank.runner import gather, one_row
from lakerank.spark.runtime.runner import SparkRunner

#: Rows that a task sorts, and that the driver receives at once, about.
_TASK_ROWS = 2_000_000

#: Tables of up to so many rows are sent to every executor rather than shuffled.
_BROADCAST_ROWS = 500_000

_MODALITY = pa.schema([pa.field("modality", pa.int8())])
_BLOCKS = pa.schema([pa.field("rows", pa.binary()), pa.field("unjudged", pa.int64())])


def blocks_in_spark(spark: SparkSession) -> ReadBlocks:
    """For `lakerank.evaluation.evaluation.evaluate`: reads and sorts the tables in Spark."""
    return lambda storage, inputs: _blocks(SparkRunner(spark), storage, inputs)


def _blocks(runner: SparkRunner, storage: Storage, inputs: Inputs) -> Iterator[Block]:
    """Blocks of BLOCK_ROWS rows; the driver holds those of two tasks at a time."""
    tasks = max(runner.parallelism, -(-inputs.rows // _TASK_ROWS))
    rows = _rows(runner, storage, inputs).repartition(tasks, "query_id").sortWithinPartitions("query_id", "doc_id")
    runner.describe("evaluate: the judged queries")
    for block in rows.mapInArrow(_packed, from_arrow_schema(_BLOCKS)).toLocalIterator(prefetchPartitions=True):
        with pa.ipc.open_stream(block["rows"]) as reader:
            yield reader.read_all(), block["unjudged"]


def _packed(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Whole queries, one Arrow stream a row."""
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    for block in whole_queries(batches, BLOCK_ROWS):
        rows, unjudged = judged_only(block.select(ROWS.names).cast(ROWS))
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, ROWS, options=options) as writer:
            writer.write_table(rows)
        yield one_row(_BLOCKS, sink.getvalue().to_pybytes(), unjudged)


def _rows(runner: SparkRunner, storage: Storage, inputs: Inputs) -> DataFrame:
    """The rows of all tables (ROWS); lists of unjudged queries are left out here where the judgements are few."""
    tasks, labels = 4 * runner.parallelism, inputs.labels

    def read_table(table: InputTable) -> DataFrame:
        groups = inputs.row_groups(table)
        return runner.scatter(groups, lambda group: table_rows(storage, table, *group), ROWS, tasks)

    queries = inputs.row_groups(InputTable.QUERY)
    rows = runner.scatter(queries, lambda group: query_rows(storage, *group, labels), ROWS, tasks)
    qrels = read_table(InputTable.QREL)
    rows = rows.unionByName(qrels)
    lists = [_with_modalities(runner, storage, inputs, read_table(InputTable.CANDIDATE)), read_table(InputTable.RANKED)]
    if inputs.baseline is not None:
        lists.append(read_table(InputTable.BASELINE))
    judged = F.broadcast(qrels.select("query_id").distinct())
    few = sum(fragment.rows for fragment in inputs.files[InputTable.QREL]) <= _BROADCAST_ROWS
    for frame in lists:
        rows = rows.unionByName(frame.join(judged, "query_id", "left_semi") if few else frame)
    return rows


def _with_modalities(runner: SparkRunner, storage: Storage, inputs: Inputs, candidates: DataFrame) -> DataFrame:
    """Candidates with the modality of their documents; most lakes have one modality, which the footers tell."""
    groups, tasks = row_groups(inputs.documents), 4 * runner.parallelism

    def read_footer(group: tuple[TableFile, int]) -> Iterator[pa.RecordBatch]:
        yield one_row(_MODALITY, known_modality(storage, *group))

    runner.describe("evaluate: modalities of the documents")
    modalities = gather(runner, groups, read_footer, _MODALITY, tasks)["modality"]
    distinct = pc.unique(modalities).to_pylist()
    if len(distinct) == 1 and distinct[0] is not None:
        return candidates.withColumn("modality", F.lit(distinct[0]).cast("tinyint"))
    documents = runner.scatter(groups, lambda group: document_modalities(storage, *group), MODALITIES, tasks)
    documents = documents.groupBy("doc_id").agg(F.max("modality").alias("modality"))
    if sum(fragment.rows for fragment in inputs.documents) <= _BROADCAST_ROWS:
        documents = F.broadcast(documents)
    return candidates.drop("modality").join(documents, "doc_id", "left")
