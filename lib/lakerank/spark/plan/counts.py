"""What the tasks of a step count, added up by Spark: all that the driver sees of a step's results."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

#: A count, by name and number (of a partition, range or cost; 0 for a total).
COUNTS = pa.schema([("what", pa.string()), ("number", pa.int64()), ("value", pa.int64())])

Counts = Mapping[str, Mapping[int, int]]


def totals(values: Mapping[str, int], number: int = 0) -> pa.RecordBatch:
    """A value for each name, as rows of COUNTS."""
    columns = {"what": [*values], "number": [number] * len(values), "value": [*values.values()]}
    return pa.RecordBatch.from_pydict(columns, schema=COUNTS)


def histogram(what: str, numbers: npt.NDArray[np.int64]) -> pa.RecordBatch:
    """How often each number occurs among some (N,), as rows of COUNTS."""
    distinct, amounts = np.unique(numbers, return_counts=True)
    arrays = [pa.array([what] * len(distinct), pa.string()), pa.array(distinct), pa.array(amounts.astype(np.int64))]
    return pa.RecordBatch.from_arrays(arrays, schema=COUNTS)


def summed(counts: DataFrame) -> Counts:
    """COUNTS added up: a few thousand numbers, whatever the size of the lake."""
    rows = counts.groupBy("what", "number").agg(F.sum("value").alias("value")).toArrow()
    sums: dict[str, dict[int, int]] = {}
    for row in rows.to_pylist():
        sums.setdefault(row["what"], {})[row["number"]] = row["value"]
    return sums


def total_of(counts: Counts, what: str) -> int:
    """The total counted under a name."""
    return counts.get(what, {}).get(0, 0)
