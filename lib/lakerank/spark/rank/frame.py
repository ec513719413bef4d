"""The ranked lists of a run that has them, as a frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession

from lakerank.lake.storage import Storage
from lakerank.lake.tables import read_table_file
from lakerank.schemas import RANKED
from lakerank.spark.runtime.frames import parallelism, scatter


def read_ranked(spark: SparkSession, storage: Storage, files: Sequence[str], depth: int | None = None) -> DataFrame:
    """Rows of some files of ranked/, down to a rank. Columns: RANKED."""

    def read(file: str) -> Iterator[pa.RecordBatch]:
        yield from ranked_batches(storage, file, depth)

    return scatter(spark, files, read, RANKED, tasks=4 * parallelism(spark))


def ranked_batches(storage: Storage, file: str, depth: int | None = None) -> Iterator[pa.RecordBatch]:
    """One file of ranked/ in its order, down to a rank."""
    for _, _, batch in read_table_file(storage, file, RANKED):
        yield batch if depth is None else batch.filter(pc.less_equal(batch["rank"], depth))
