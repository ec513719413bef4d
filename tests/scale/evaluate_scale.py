"""Evaluate a large run on this machine, and say how long it took and how much memory it held.

    python tests/scale/evaluate_scale.py --queries 1000000 --candidates 50 --cores 2

Makes a lake and a run of that size (seeded, once a folder), runs `jobs/evaluate.py --spark` on it, and prints one JSON
line: seconds, processor seconds, and the largest resident memory of the job with all its children, sampled.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lakerank import schemas
from lakerank.lake.runs import RunPaths

ROOT = Path(__file__).parents[2]
QUERIES_PER_FILE = 50_000
DOCUMENTS = 500_000
LANGUAGES = ("ar", "de", "en", "fr", "ja", "zh")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=1_000_000)
    parser.add_argument("--candidates", type=int, default=50, help="documents a query")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--driver-memory", default="2g", help="heap of Spark's JVM")
    parser.add_argument("--folder", type=Path, help="where the lake is, or is made  [default: a temporary one]")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        make_lake(folder, arguments.queries, arguments.candidates)
        measured = evaluate(folder, arguments.cores, arguments.driver_memory)
    size = {"queries": arguments.queries, "pairs": arguments.queries * arguments.candidates, "cores": arguments.cores}
    sys.stdout.write(json.dumps({**size, **measured}) + "\n")
    return 0 if measured["status"] == 0 else 1


def make_lake(folder: Path, queries: int, candidates: int) -> None:
    """Two judged documents a query, one of them among its candidates; the run ranks that one better than chance."""
    ranked = Path(RunPaths(str(folder / "out"), "scale").ranked)
    names = pa.array([f"document-{number:07d}" for number in range(DOCUMENTS)])
    for name in ("documents", "queries", "candidates", "qrels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    ranked.mkdir(parents=True, exist_ok=True)
    texts = {"doc_id": names, "text": pa.array(["text"] * DOCUMENTS)}
    pq.write_table(pa.table(texts), folder / "documents/part-0.parquet", row_group_size=50_000)
    for part, first in enumerate(range(0, queries, QUERIES_PER_FILE)):
        path = f"part-{part:05d}.parquet"
        if not (ranked / path).exists():
            count = min(QUERIES_PER_FILE, queries - first)
            _write_part(folder, ranked, path, names, first, count, candidates)
    tables = {name: str(folder / name) for name in ("documents", "queries", "candidates", "qrels")}
    paths = RunPaths(str(folder / "out"), "scale")
    Path(paths.folder).mkdir(parents=True, exist_ok=True)
    Path(paths.config).write_text(json.dumps({"lake": {**tables, "output": paths.output}}))
    Path(paths.manifest).write_text("{}")


def _write_part(
    folder: Path, ranked: Path, path: str, names: pa.Array, first: int, count: int, candidates: int
) -> None:
    generator = np.random.default_rng(first)
    ids = pa.array([f"query-{number:08d}" for number in range(first, first + count)])
    start = generator.integers(0, DOCUMENTS, count)
    docs = (start[:, None] + np.arange(candidates)[None, :] * 7919) % DOCUMENTS  # distinct: 7919 is a prime
    of_pair = pa.array(np.repeat(np.arange(count), candidates))
    languages = pa.array(LANGUAGES).take(pa.array(np.arange(count) % len(LANGUAGES)))
    pq.write_table(
        pa.table({"query_id": ids, "text": pa.array(["?"] * count), "language": languages}), folder / "queries" / path
    )
    listed = generator.permuted(np.tile(np.arange(candidates), (count, 1)), axis=1)
    scores = 30.0 - listed + generator.random((count, candidates))
    _write(folder / "candidates" / path, schemas.CANDIDATES, {
        "query_id": ids.take(of_pair), "doc_id": names.take(pa.array(docs.ravel())),
        "first_stage_score": scores.ravel(), "first_stage_rank": (listed + 1).ravel(),
    })  # fmt: skip
    logits = generator.normal(size=(count, candidates))
    logits[:, 0] += 1.5
    order = np.argsort(-logits, axis=1)
    ordered = np.take_along_axis(logits, order, axis=1).ravel()
    relevance = 1 / (1 + np.exp(2.65 - ordered))
    _write(ranked / path, schemas.RANKED, {
        "query_id": ids.take(of_pair), "doc_id": names.take(pa.array(np.take_along_axis(docs, order, axis=1).ravel())),
        "rank": np.tile(np.arange(1, candidates + 1), count), "logit": ordered, "relevance": relevance,
        "label": np.searchsorted([0.25, 0.5, 0.75], relevance, "right"),
        "first_stage_rank": (np.take_along_axis(listed, order, axis=1) + 1).ravel(),
        "truncated": np.zeros(len(ordered), bool),
    })  # fmt: skip
    judged = np.stack([docs[:, 0], (docs[:, 0] + 1) % DOCUMENTS], axis=1).ravel()
    _write(folder / "qrels" / path, schemas.QRELS, {
        "query_id": ids.take(pa.array(np.repeat(np.arange(count), 2))), "doc_id": names.take(pa.array(judged)),
        "relevance": np.tile([2, 1], count),
    })  # fmt: skip


def _write(path: Path, schema: pa.Schema, columns: dict[str, object]) -> None:
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in schema]
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), path, row_group_size=500_000)


def evaluate(folder: Path, cores: int, driver_memory: str) -> dict[str, object]:
    """Run the job; what it took, with its summary's figures."""
    settings = {
        **{f"lake.{name}": str(folder / name) for name in ("documents", "queries", "candidates", "qrels")},
        "lake.output": str(folder / "out"),
        "spark.conf": json.dumps({
            "spark.master": f"local[{cores}]", "spark.driver.memory": driver_memory, "spark.ui.enabled": False,
            "spark.local.dir": str(folder / "spark"),
        }),
    }  # fmt: skip
    command = [sys.executable, str(ROOT / "jobs/evaluate.py"), "--config", str(ROOT / "conf/demo.yaml")]
    command += ["--run-id", "scale", "--set", "spark.local_pairs=0", "--examples", "0"]
    for name, value in settings.items():
        command += ["--set", f"{name}={value}"]
    started = time.monotonic()
    job = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = _Peak()
    while job.poll() is None:
        peak.sample(job.pid)
        time.sleep(0.5)
    seconds = time.monotonic() - started
    output = job.stdout.read() if job.stdout else ""
    summary = json.loads(output.splitlines()[-1])
    names = ("queries", "first_stage", "reranked", "message")
    return {
        "status": job.returncode, "seconds": round(seconds, 1), "processor_seconds": round(peak.processor_seconds, 1),
        "peak_mb": round(peak.total / 2**20), "peak_mb_jvm": round(peak.java / 2**20),
        "peak_mb_python": round(peak.python / 2**20), **{name: summary[name] for name in names if name in summary},
    }  # fmt: skip


class _Peak:
    """The largest memory seen, in bytes: proportional set sizes, so that pages shared count once."""

    def __init__(self) -> None:
        self.total = self.java = self.python = 0
        self._ticks: dict[int, int] = {}

    @property
    def processor_seconds(self) -> float:
        """Of all processes, up to when each was seen last."""
        return sum(self._ticks.values()) / os.sysconf("SC_CLK_TCK")

    def sample(self, root: int) -> None:
        java = python = 0
        for pid in _tree(root):
            size, name = _memory(pid)
            self._ticks[pid] = max(self._ticks.get(pid, 0), _ticks(pid))
            java, python = (java + size, python) if name == "java" else (java, python + size)
        self.total, self.java, self.python = (
            max(self.total, java + python), max(self.java, java), max(self.python, python),
        )  # fmt: skip


def _tree(root: int) -> Iterator[int]:
    yield root
    try:
        children = Path(f"/proc/{root}/task/{root}/children").read_text().split()
        for thread in Path(f"/proc/{root}/task").iterdir():
            if thread.name != str(root):
                children += (thread / "children").read_text().split()
    except OSError:
        return
    for child in children:
        yield from _tree(int(child))


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


def _memory(pid: int) -> tuple[int, str]:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        size = next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
        return size, Path(f"/proc/{pid}/comm").read_text().strip()
    except (OSError, StopIteration):
        return 0, ""


if __name__ == "__main__":
    sys.exit(main())
