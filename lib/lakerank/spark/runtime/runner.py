"""A `Runner` whose tasks are Spark's: rows are frames, and the JVM sees counts and packed batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from lakerank.runner import COUNTS, Counts, DeviceWork, PartWork, Places, Work, counts_of, gather
from lakerank.spark.runtime.frames import describe_job, own_workers, parallelism, scatter
from lakerank.spark.runtime.overdue import ended_when_overdue
from lakerank.spark.runtime.session import device_for_task, unmanaged_gpus
from lakerank.spark.runtime.shuffle import exchange

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SparkRunner:
    """Runs tasks in the workers of a session."""

    spark: SparkSession

    @property
    def parallelism(self) -> int:
        """Tasks that can run at once."""
        return parallelism(self.spark)

    def begin(self, job: str) -> None:
        """Put what follows under one heading in the Spark UI."""
        self.spark.sparkContext.setLocalProperty("spark.jobGroup.id", f"lakerank {job}")

    def describe(self, step: str) -> None:
        """Name what follows in the Spark UI."""
        describe_job(self.spark, step)

    def scatter(self, items: Sequence[T], work: Work[T], schema: pa.Schema, tasks: int | None = None) -> DataFrame:
        """A frame of what `work` yields for each item."""
        return scatter(self.spark, items, work, schema, tasks)

    def exchange(
        self, rows: Sequence[DataFrame], parts: int, kinds: Mapping[int, pa.Schema], work: PartWork, schema: pa.Schema
    ) -> DataFrame:
        """Shuffle frames of BATCHES."""
        return exchange(rows, parts, kinds, work, schema)

    def collect(self, rows: DataFrame, schema: pa.Schema) -> pa.Table:
        """The frame's rows."""
        return rows.toArrow().cast(schema)

    def summed(self, counts: DataFrame) -> Counts:
        """COUNTS added up by Spark: all that the driver sees of a step's results."""
        return counts_of(counts.groupBy("what", "number").agg(F.sum("value").alias("value")).toArrow().cast(COUNTS))

    def on_device(self, items: Sequence[T], work: DeviceWork[T], schema: pa.Schema, places: Places) -> pa.Table:
        """In workers of their own, on the GPUs that Spark gives them, or that a local master's tasks share out."""
        tasks, deadline = unmanaged_gpus(self.spark, places.device) or None, places.deadline
        of_task = -(-len(items) // tasks) if tasks else 1
        deadline = replace(deadline, least_s=of_task * deadline.least_s, first_s=of_task * deadline.first_s)
        watched = ended_when_overdue(self.spark.sparkContext, deadline, lambda index: f"unit {items[index * of_task]}")
        with own_workers(self.spark, "score"), watched:
            return gather(self, items, lambda item: work(item, device_for_task(places.device)), schema, tasks)
