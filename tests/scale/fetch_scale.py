"""Documents by reference against Spark's own reader into a UDF: 5,000 documents of 200 KB, all of them and every tenth.

    python tests/scale/fetch_scale.py [--documents 5000] [--kilobytes 200]

Each way runs in a Spark session of its own, so that its peak memory is its own: driver, JVM and workers together.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "lib"), str(Path(__file__).parent)]

import numpy as np  # noqa: E402
import plan_scale  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
from pyspark.sql import SparkSession  # noqa: E402
from pyspark.sql import functions as F  # noqa: E402
from pyspark.sql.pandas.types import from_arrow_schema  # noqa: E402

from lakerank.lake.blobs import (  # noqa: E402
    BlobRef,
    fetch,
    prefetched,
)
from lakerank.lake.storage import Storage  # noqa: E402
from lakerank.runner import gather  # noqa: E402
from lakerank.spark.runtime import session  # noqa: E402
from lakerank.spark.runtime.runner import SparkRunner  # noqa: E402

#: Row groups of two documents: a reader of a random tenth then meets a useful document in every group that it reads.
ROW_GROUP_ROWS = 2
UNIT_DOCUMENTS = 250
WAYS = ("reference", "spark", "reference-tenth", "spark-tenth")

_DONE = pa.schema([("bytes", pa.int64()), ("read", pa.int64())])


def write_documents(folder: Path, count: int, size: int) -> None:
    """Incompressible documents in files of 500."""
    rng = np.random.default_rng(0)
    for first in range(0, count, 500):
        rows = range(first, min(count, first + 500))
        columns = {"doc_id": [f"doc-{n:06d}" for n in rows], "image": [rng.bytes(size) for _ in rows]}
        pq.write_table(pa.table(columns), folder / f"part-{first // 500:03d}.parquet", row_group_size=ROW_GROUP_ROWS)


def chosen(count: int, tenth: bool) -> list[int]:
    """All documents, or a random tenth, in file order."""
    if not tenth:
        return list(range(count))
    return sorted(np.random.default_rng(1).choice(count, count // 10, replace=False).tolist())


def read_calls() -> int:
    """Bytes that this process has asked the system for."""
    return int(Path("/proc/self/io").read_text().splitlines()[0].split()[1])


def by_reference(spark: SparkSession, folder: Path, requested: list[int]) -> pa.Table:
    """As scoring does it: a task a unit, fetched ahead of the one who looks at each byte."""
    units = [requested[first : first + UNIT_DOCUMENTS] for first in range(0, len(requested), UNIT_DOCUMENTS)]

    def work(unit: list[int]) -> Iterator[pa.RecordBatch]:
        before, total = read_calls(), 0
        refs = [
            BlobRef(f"{folder}/part-{n // 500:03d}.parquet", n % 500 // ROW_GROUP_ROWS, n % ROW_GROUP_ROWS)
            for n in unit
        ]
        for blob in prefetched(fetch(Storage(), refs, "doc_id"), (16,)):
            total += look_at(blob.image or b"")
        yield pa.RecordBatch.from_pydict({"bytes": [total], "read": [read_calls() - before]}, schema=_DONE)

    return gather(SparkRunner(spark), units, work, _DONE)


def by_spark(spark: SparkSession, folder: Path, requested: list[int], every: bool) -> pa.Table:
    """Spark reads the table, the JVM hands the bytes to the UDF."""
    rows = spark.read.parquet(str(folder))
    if not every:
        keys = spark.createDataFrame([(f"doc-{n:06d}",) for n in requested], "doc_id string")
        rows = rows.join(F.broadcast(keys), "doc_id", "left_semi")

    def work(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        total = 0
        for batch in batches:
            for image in batch.column("image"):
                total += look_at(image.as_py())
        yield pa.RecordBatch.from_pydict({"bytes": [total], "read": [0]}, schema=_DONE)

    return rows.select("image").mapInArrow(work, from_arrow_schema(_DONE)).toArrow()


def look_at(image: bytes) -> int:
    """A reader that uses what it is given."""
    return len(image) if image[0] + image[-1] >= 0 else 0


def one_way(way: str, folder: Path, count: int) -> dict[str, Any]:
    """Seconds, bytes and peak memory of one way."""
    conf = plan_scale.CONF | {"spark.ui.enabled": False}
    spark = session.start("lakerank-fetch", conf)
    try:
        gather(SparkRunner(spark), [0, 1], lambda _: iter(()), _DONE)  # workers started
        before, memory, started = plan_scale.tree_memory(), plan_scale.PeakMemory(), time.monotonic()
        expected = chosen(count, way.endswith("tenth"))
        if way.startswith("reference"):
            done = by_reference(spark, folder, expected)
        else:
            done = by_spark(spark, folder, expected, len(expected) == count)
        seconds, peak = time.monotonic() - started, memory.stop()
    finally:
        spark.stop()
    total, read = (sum(done[name].to_pylist()) for name in ("bytes", "read"))
    return {
        "way": way,
        "documents": len(expected),
        "seconds": round(seconds, 2),
        "MB_per_second": round(total / 1e6 / seconds),
        "peak_MB": round(peak / 1e6),
        "peak_MB_above_idle": round((peak - before) / 1e6),
        "read_over_useful": round(read / total, 2) if read else None,
    }


def main() -> None:
    """Each way in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=5000)
    parser.add_argument("--kilobytes", type=int, default=200)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(one_way(options.way, Path(options.folder), options.documents)))
        return
    with tempfile.TemporaryDirectory(prefix="lakerank-fetch-") as folder:
        write_documents(Path(folder), options.documents, options.kilobytes * 1000)
        for way in WAYS:
            command = [
                sys.executable,
                __file__,
                "--documents",
                str(options.documents),
                "--way",
                way,
                "--folder",
                folder,
            ]
            print(subprocess.run(command, check=True, capture_output=True, text=True).stdout, end="", flush=True)


if __name__ == "__main__":
    main()
