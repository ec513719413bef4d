"""Index and number: tasks write what is missing of a table's key index, and one task the numbered query list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
from pyspark.sql import SparkSession

from lakerank.cost import Sizing
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import Fragment
from lakerank.plan.index import (
    Chunk,
    QueryList,
    TableIndex,
    TableName,
    table_chunks,
    write_chunk_index,
    write_query_list,
)
from lakerank.spark.runtime.frames import describe_job, gather, parallelism

_ROWS = pa.schema([("rows", pa.int64())])


def table_index(
    spark: SparkSession, storage: Storage, output: str, table: TableName, files: Sequence[Fragment], sizing: Sizing
) -> TableIndex:
    """The index of a table; missing index files are written first."""
    folder = join(output, "index", table)
    chunks = table_chunks(files)
    existing = set(storage.list_names(folder))
    missing = [chunk for chunk in chunks if chunk.index_name not in existing]
    versions = {fragment.file.uri: fragment.file.version for fragment in files}

    def write(chunk: Chunk) -> Iterator[pa.RecordBatch]:
        rows = write_chunk_index(storage, folder, table, chunk, versions)
        yield pa.RecordBatch.from_pydict({"rows": [rows]}, schema=_ROWS)

    if missing:
        describe_job(spark, f"plan: index {table}, {len(missing)} of {len(chunks)} chunks")
        gather(spark, missing, write, _ROWS, tasks=max(4 * parallelism(spark), len(missing) // 8))
    return TableIndex(storage, folder, chunks, sizing)


def number_queries(spark: SparkSession, index: TableIndex, folder: str) -> QueryList:
    """Sort and number the queries of an index in one task: as many as its memory holds, some ten million."""

    def write(_: int) -> Iterator[pa.RecordBatch]:
        yield pa.RecordBatch.from_pydict({"rows": [write_query_list(index, folder)]}, schema=_ROWS)

    describe_job(spark, "plan: sort and number the queries")
    return QueryList(index.storage, folder, gather(spark, [0], write, _ROWS)["rows"][0].as_py())
