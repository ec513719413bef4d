"""Between Arrow and Spark: tasks that read the lake with pyarrow, so that only keys ever reach the JVM."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import from_arrow_schema

from lakerank.runner import Work

T = TypeVar("T")


def scatter(
    spark: SparkSession, items: Sequence[T], work: Work[T], schema: pa.Schema, tasks: int | None = None
) -> DataFrame:
    """A frame of what `work` yields for each item; consecutive items share a task where there are fewer tasks.

    `items` cross to the workers as they are: a sequence that holds an address rather than its items crosses small.
    """
    count = len(items)

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for index in batch.column(0).to_pylist():
                yield from work(items[index])

    ids = spark.range(0, count, 1, numPartitions=max(1, min(count, tasks or count)))
    return ids.mapInArrow(run, from_arrow_schema(schema))


@contextmanager
def own_workers(spark: SparkSession, name: str) -> Iterator[None]:
    """Frames made within run in Python workers of their own, never in idle ones that served other stages.

    Spark hands a task any idle worker with the same environment, and stages with several Python steps leave more idle
    workers than cores. Were scoring tasks to meet those, each would load a model; in an environment of their own there
    are as many workers as tasks at once.
    """
    environment = spark.sparkContext.environment
    environment["LAKERANK_WORKERS"] = name
    try:
        yield
    finally:
        del environment["LAKERANK_WORKERS"]


def parallelism(spark: SparkSession) -> int:
    """Tasks that can run at once."""
    return spark.sparkContext.defaultParallelism


def describe_job(spark: SparkSession, what: str) -> None:
    """Name what follows in the Spark UI: its jobs, and their stages, which would be called after a line of code."""
    spark.sparkContext.setJobDescription(what)
    spark.sparkContext.setLocalProperty("callSite.short", what)
