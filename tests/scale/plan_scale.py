"""Plan and rank Zipf lakes of several sizes with a free scorer: seconds and shuffle bytes a pair, peak memory.

python tests/scale/plan_scale.py 100_000 1_000_000 10_000_000
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "lib"), str(Path(__file__).parent)]
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "lib"), str(Path(__file__).parent)])

import zipf_lake  # noqa: E402
from pyspark.sql import SparkSession  # noqa: E402

from lakerank.lake.storage import Storage  # noqa: E402
from lakerank.plan.plan import load_plan, planned_units  # noqa: E402
from lakerank.rerank.run import run  # noqa: E402
from lakerank.spark.runtime import session  # noqa: E402
from lakerank.spark.runtime.runner import SparkRunner  # noqa: E402

CONF: dict[str, str | int | float | bool] = {
    "spark.master": "local[2]",
    "spark.driver.memory": "2g",
    "spark.ui.enabled": True,
    "spark.ui.port": "0",
    "spark.ui.showConsoleProgress": False,
    "spark.sql.shuffle.partitions": 4,
    "spark.ui.retainedStages": 10000,
}


class PeakMemory:
    """Largest resident memory of this process and all below it, looked at twice a second."""

    def __init__(self) -> None:
        self.bytes = 0
        self._stop = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            self.bytes = max(self.bytes, tree_memory())

    def stop(self) -> int:
        """The largest seen."""
        self._stop.set()
        return self.bytes


def tree() -> set[int]:
    """This process and all below it."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
                parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
            except OSError:
                continue
    ours = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return ours


def tree_seconds() -> float:
    """Processor time of this process and all below it, ended ones included: other work on the machine is not in it."""
    ticks = 0
    for pid in tree():
        try:
            ticks += sum(int(n) for n in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15])
        except OSError:
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


def tree_memory() -> int:
    """Proportional memory of this process and all below it: pages that forked workers share count once."""
    total = 0
    for pid in tree():
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        except (OSError, StopIteration):
            continue
    return total


def shuffled(spark: SparkSession) -> int:
    """Bytes that stages have written for others to read, by Spark's own account."""
    context = spark.sparkContext
    address = f"{context.uiWebUrl}/api/v1/applications/{context.applicationId}/stages"
    with urllib.request.urlopen(address) as answer:  # noqa: S310 - this machine's Spark
        return sum(stage["shuffleWriteBytes"] for stage in json.load(answer))


def measure(spark: SparkSession, pairs: int) -> dict[str, Any]:
    """One lake: plan, score, publish."""
    folder = Path(tempfile.mkdtemp(prefix="lakerank-scale-"))
    try:
        candidates = zipf_lake.write_lake(folder, pairs)
        job, storage = zipf_lake.zipf_job(folder, "r"), Storage()
        figures: dict[str, Any] = {"pairs": candidates}
        memory = PeakMemory()
        moved = 0
        for stage in ("plan", "score", "publish"):
            before, started, worked = shuffled(spark), time.monotonic(), tree_seconds()
            summary = run(SparkRunner(spark), storage, job, [stage])
            figures[stage] = round(time.monotonic() - started, 1)
            figures[f"{stage}_processor"] = round(tree_seconds() - worked, 1)
            written = shuffled(spark) - before
            moved += written
            figures[f"{stage}_bytes"] = round(written / candidates, 1)
        plan = load_plan(storage, job.paths)
        units = planned_units(storage, job.paths, plan).table()["cost"].to_numpy()
        figures |= {
            "microseconds_a_pair": round((figures["plan"] + figures["publish"]) / candidates * 1e6, 1),
            "processor_microseconds_a_pair": round(
                (figures["plan_processor"] + figures["publish_processor"]) / candidates * 1e6, 1
            ),
            "shuffle_bytes_a_pair": round(moved / candidates, 1),
            "units": len(units),
            "heaviest_unit": round(float(units.max() / units.mean()), 3),
            "peak_gb": round(memory.stop() / 1e9, 2),
            "published": summary["published"],
        }
        return figures
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """Measure each size, in one session."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=int, nargs="*", default=[100_000, 1_000_000])
    sizes = parser.parse_args().pairs
    spark = session.start("lakerank-scale", CONF)
    try:
        measure(spark, 20_000)  # classes loaded, workers started
        for size in sizes:
            print(json.dumps(measure(spark, size)), flush=True)
    finally:
        spark.stop()


if __name__ == "__main__":
    main()
