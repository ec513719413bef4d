"""Plan a table of many small files, and again when nothing has changed: seconds, and those of processors.

python tests/scale/many_files.py 10_000 --delta --spark
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "lib"), str(Path(__file__).parent)]
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "lib"), str(Path(__file__).parent)])

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
from plan_scale import CONF, PeakMemory, tree_seconds  # noqa: E402

from lakerank.cost import Sizing  # noqa: E402
from lakerank.lake.runs import RunPaths  # noqa: E402
from lakerank.lake.storage import Storage  # noqa: E402
from lakerank.plan.plan import PlanLimits, Tables  # noqa: E402
from lakerank.rerank.plan.builder import ensure_plan  # noqa: E402
from lakerank.runner import LocalRunner  # noqa: E402
from lakerank.spark.runtime import session  # noqa: E402
from lakerank.spark.runtime.runner import SparkRunner  # noqa: E402

ROWS, QUERIES, PAIRS = 1000, 2000, 100_000
SIZING = Sizing(3136, 602112, 10000)
LIMITS = PlanLimits(SIZING, SIZING, max_queries_per_group=64, unit_tokens=100_000, rows_per_file=1_000_000)


def write_lake(folder: Path, files: int, is_delta: bool) -> Tables:
    """Files of a thousand documents each, and candidates among them."""
    documents = folder / "documents"
    documents.mkdir()
    for number in range(files):
        ids = [f"d{row:08d}" for row in range(number * ROWS, (number + 1) * ROWS)]
        rows = pa.table({"doc_id": ids, "text": [f"text of {name}" for name in ids]})
        pq.write_table(rows, documents / f"part-{number:05d}.parquet")
    if is_delta:
        from deltalake import convert_to_deltalake

        convert_to_deltalake(documents)
    queries = {"query_id": [f"q{n}" for n in range(QUERIES)], "text": [f"query {n}" for n in range(QUERIES)]}
    chosen = np.random.default_rng(1).integers(0, files * ROWS, PAIRS)
    pairs = {"query_id": [f"q{n % QUERIES}" for n in range(PAIRS)], "doc_id": [f"d{row:08d}" for row in chosen]}
    for name, columns in (("queries", queries), ("candidates", pairs)):
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    address = f"delta+{documents}" if is_delta else str(documents)
    return Tables(address, str(folder / "queries.parquet"), str(folder / "candidates.parquet"))


def main() -> None:
    """Two plans."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=int)
    parser.add_argument("--delta", action="store_true")
    parser.add_argument("--spark", action="store_true", help="on Spark's local[2], else in this process")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="lakerank-files-"))
    spark = session.start("lakerank-files", CONF) if asked.spark else None
    try:
        tables = write_lake(folder, asked.files, asked.delta)
        for run_id in ("first", "nightly"):
            memory, started, worked = PeakMemory(), time.monotonic(), tree_seconds()
            runner = SparkRunner(spark) if spark else LocalRunner(2)
            plan = ensure_plan(runner, Storage(), RunPaths(str(folder / "out"), run_id), tables, "f00d", LIMITS)
            figures = {"plan": run_id, "files": asked.files, "documents": asked.files * ROWS, "new": plan.new}
            figures |= {"seconds": round(time.monotonic() - started, 1)}
            figures |= {"processor_seconds": round(tree_seconds() - worked, 1)}
            figures |= {"index_files": len([*(folder / "out/index/documents").iterdir()])}
            print(json.dumps(figures | {"peak_gb": round(memory.stop() / 1e9, 2)}), flush=True)
    finally:
        if spark is not None:
            spark.stop()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
