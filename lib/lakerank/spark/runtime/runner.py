"""A `Runner` whose tasks are Spark's: the JVM sees ids, counts and packed batches; tasks read the lake with pyarrow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, TypeVar

import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from lakerank.runner import (
    COUNTS,
    MOST_FIRST_S,
    Counts,
    Deadline,
    DeviceWork,
    PartWork,
    Places,
    Work,
    counts_of,
    unpack,
)
from lakerank.spark.runtime.overdue import ended_when_overdue
from lakerank.spark.runtime.session import device_for_task, unmanaged_gpus

T = TypeVar("T")


#: For a task that is no unit: a step's first may take a day, and the others ten times the slowest, or four hours.
TASK_DEADLINE = Deadline(least_s=4 * 3600.0, first_s=MOST_FIRST_S)


@dataclass(frozen=True, slots=True)
class SparkRunner:
    """Runs tasks in the workers of a session."""

    spark: SparkSession
    deadline: Deadline = TASK_DEADLINE

    @property
    def parallelism(self) -> int:
        """Tasks that can run at once."""
        return self.spark.sparkContext.defaultParallelism

    def gives_gpus(self, device: str) -> bool:
        """Whether Spark hands GPUs out, or a local master's tasks share this machine's."""
        managed = self.spark.sparkContext.getConf().contains("spark.task.resource.gpu.amount")
        return device.startswith("cuda") or unmanaged_gpus(self.spark, device) > 0 or (managed and device == "auto")

    def begin(self, job: str) -> None:
        """Put what follows under one heading in the Spark UI."""
        self.spark.sparkContext.setLocalProperty("spark.jobGroup.id", f"lakerank {job}")

    def describe(self, step: str) -> None:
        """Name what follows in the Spark UI: its jobs, and their stages, which would be called after a line of code."""
        self.spark.sparkContext.setJobDescription(step)
        self.spark.sparkContext.setLocalProperty("callSite.short", step)

    def scatter(self, items: Sequence[T], work: Work[T], schema: pa.Schema, tasks: int | None = None) -> DataFrame:
        """A frame of what `work` yields for each item."""
        count = len(items)

        def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in batches:
                for index in batch.column(0).to_pylist():
                    yield from work(items[index])

        ids = self.spark.range(0, count, 1, numPartitions=max(1, min(count, tasks or count)))
        return ids.mapInArrow(run, from_arrow_schema(schema))

    def exchange(
        self, rows: Sequence[DataFrame], parts: int, kinds: Mapping[int, pa.Schema], work: PartWork, schema: pa.Schema
    ) -> DataFrame:
        """Shuffle frames of BATCHES: the JVM moves packed batches unopened, thousands of rows in one."""

        def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            context = TaskContext.get()
            yield from work(context.partitionId() if context else 0, unpack(batches, kinds))

        union = reduce(DataFrame.unionAll, rows)
        return union.repartitionById(parts, "part").mapInArrow(run, from_arrow_schema(schema))

    def collect(self, rows: DataFrame, schema: pa.Schema) -> pa.Table:
        """The frame's rows."""
        with self._watched():
            return rows.toArrow().cast(schema)

    def stream(self, rows: DataFrame) -> Iterator[Any]:
        """The rows of two tasks at a time."""
        with self._watched():
            yield from rows.toLocalIterator(prefetchPartitions=True)

    def summed(self, counts: DataFrame) -> Counts:
        """COUNTS added up by Spark: all that the driver sees of a step's results."""
        return counts_of(self.collect(counts.groupBy("what", "number").agg(F.sum("value").alias("value")), COUNTS))

    def on_device(self, items: Sequence[T], work: DeviceWork[T], schema: pa.Schema, places: Places) -> pa.Table:
        """In workers of their own, on the GPUs that Spark gives them, or that a local master's tasks share out."""
        tasks, deadline = unmanaged_gpus(self.spark, places.device) or None, places.deadline
        of_task = -(-len(items) // tasks) if tasks else 1
        deadline = replace(deadline, least_s=of_task * deadline.least_s, first_s=of_task * deadline.first_s)
        watched = ended_when_overdue(self.spark.sparkContext, deadline, lambda index: f"unit {items[index * of_task]}")
        with _own_workers(self.spark, "score"), watched:
            rows = self.scatter(items, lambda item: work(item, device_for_task(places.device)), schema, tasks)
            return rows.toArrow().cast(schema) if items else schema.empty_table()

    def _watched(self) -> AbstractContextManager[None]:
        return ended_when_overdue(self.spark.sparkContext, self.deadline, lambda index: f"task {index}")


@contextmanager
def _own_workers(spark: SparkSession, name: str) -> Iterator[None]:
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
