"""Cut: the document groups of all partitions become work units of even cost, in file order."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import SparkSession

from lakerank.lake.scores import UNITS, write_unit_list
from lakerank.lake.storage import join
from lakerank.lake.tables import parquet_bytes
from lakerank.plan.index import QueryList
from lakerank.plan.units import Cuts, GroupFiles, unit_name, unit_rows
from lakerank.spark.runtime.frames import describe_job, gather, parallelism

_REPORT = pa.schema([("task", pa.int64()), ("units", pa.int64()), ("largest", pa.int64())])


def write_units(
    spark: SparkSession, groups: GroupFiles, queries: QueryList, unit_tokens: int
) -> tuple[tuple[int, ...], int]:
    """Cut groups into units of about `unit_tokens`: a file each in `units/`, and lists of them in `unit_lists/`.

    Returns:
        How many units each list names, in file order, and the cost of the largest.
    """
    total = sum(groups.costs.values())
    cuts = Cuts.near(total, max(1, min(unit_tokens, total // (2 * parallelism(spark)))))
    tasks = min(cuts.units, max(4 * parallelism(spark), cuts.units // 64)) if total else 0
    shares = [(task * cuts.units // tasks, (task + 1) * cuts.units // tasks) for task in range(tasks)]
    storage, folder = groups.storage, groups.folder

    def cut(task: int) -> Iterator[pa.RecordBatch]:
        units = []
        for unit in groups.units(cuts, *shares[task]):
            rows = unit_rows(unit, queries)
            name = unit_name(rows)
            storage.replace(join(folder, "units", f"{name}.parquet"), parquet_bytes(rows, max(1, rows.num_rows)))
            pairs = pc.sum(pc.list_value_length(rows["queries"])).as_py()
            units.append({"unit": name, "groups": rows.num_rows, "pairs": pairs, "cost": pc.sum(unit["cost"]).as_py()})
        table = pa.Table.from_pylist(units, schema=UNITS)
        write_unit_list(storage, folder, task, table)
        largest = pc.max(table["cost"]).as_py() or 0
        yield pa.RecordBatch.from_pydict({"task": [task], "units": [len(units)], "largest": [largest]}, schema=_REPORT)

    describe_job(spark, f"plan: cut {cuts.units} units")
    report = gather(spark, range(tasks), cut, _REPORT).sort_by("task")
    return tuple(report["units"].to_pylist()), max(report["largest"].to_pylist(), default=0)
