"""The shuffle: packed batches of keys from task to task, which the JVM moves unopened, thousands of rows in one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce

import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import DataFrame
from pyspark.sql.pandas.types import from_arrow_schema

from lakerank.runner import PartWork, unpack


def exchange(
    frames: Sequence[DataFrame],
    parts: int,
    kinds: Mapping[int, pa.Schema],
    work: PartWork,
    schema: pa.Schema,
) -> DataFrame:
    """Shuffle Arrow batches by partition and run `work` on each partition: one task each.

    Args:
        frames: frames of BATCHES.
        kinds: the schema of each kind of rows.
        schema: what `work` yields.
    """

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        context = TaskContext.get()
        yield from work(context.partitionId() if context else 0, unpack(batches, kinds))

    union = reduce(DataFrame.unionAll, frames)
    return union.repartitionById(parts, "part").mapInArrow(run, from_arrow_schema(schema))
