"""A night's changes to a lake of 100,000 pairs: is exactly what is needed scored, and how long does the night take?

    python tests/scale/incremental.py [--pairs 100000] [--scattered]

The scorer sleeps as long as a 2.2 B-parameter model would take on one device at 400 TFLOP/s for 10,000 page images of
768 visual tokens and their queries. The night adds 1 % of pairs, changes 10 documents under their ids and removes 5
queries. The new pairs are of new documents; with --scattered they are of old ones, whose pages must be read again.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "lib"), str(Path(__file__).parent)]

import numpy as np  # noqa: E402
import plan_scale  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import zipf_lake  # noqa: E402

from lakerank.cost import Sizing, input_cost, tflop  # noqa: E402
from lakerank.lake.storage import Storage  # noqa: E402
from lakerank.records import DocumentGroup, Reject, ScoredPair  # noqa: E402
from lakerank.rerank.run import run  # noqa: E402
from lakerank.spark.runtime import session  # noqa: E402
from lakerank.spark.runtime.runner import SparkRunner  # noqa: E402

PARAMETERS = 2_200_000_000
DEVICE_TFLOPS = 400
SIZING = Sizing(3136, 602112, 10000)


def page(number: int) -> bytes:
    """The header of a page's PNG, which is all that a forecast reads, and a number that makes it another page."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1700, 2200, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"teXt", b"page\0%d" % number) + chunk(b"IEND", b"")


@dataclass
class SleepingReranker:
    """Takes the time of a large model. One device: workers of a machine take turns."""

    turn: Path
    tokens_per_second: float
    counters: zipf_lake.FreeWork = field(default_factory=zipf_lake.FreeWork)

    def score_groups(self, groups: Iterable[DocumentGroup]) -> Iterator[ScoredPair | Reject]:
        """Sleep for a group, then score it by checksum."""
        free = zipf_lake.FreeReranker()
        for group in groups:
            texts = [len((query.text or "").encode()) for query in group.queries]
            none = np.zeros(len(texts), np.int64)
            queries = input_cost(np.array(texts), none, none, SIZING).sum()
            document = input_cost(np.array([0]), np.array([1700]), np.array([2200]), SIZING).sum()
            with self.turn.open("a") as device:
                fcntl.flock(device, fcntl.LOCK_EX)
                time.sleep(float(document + queries) / self.tokens_per_second)
            yield from free.score_groups([group])


@dataclass(frozen=True)
class SleepingFactory:
    """Crosses to the worker."""

    turn: Path

    def __call__(self, device: str) -> SleepingReranker:
        """A device that is shared."""
        return SleepingReranker(self.turn, DEVICE_TFLOPS / tflop(PARAMETERS, 1))


def write(folder: Path, documents: dict[int, int], queries: Iterable[int], pairs: Iterable[tuple[int, int]]) -> None:
    """Tables of documents (number and version of its content), queries and pairs."""
    tables = {
        "documents": {
            "doc_id": [f"doc-{n:06d}" for n in documents],
            "image": [page(n + 10_000_000 * version) for n, version in documents.items()],
        },
        "queries": {"query_id": (ids := [f"query-{n:06d}" for n in queries]), "text": [f"what is in {i}" for i in ids]},
        "candidates": dict(
            zip(
                ("query_id", "doc_id"),
                zip(*((f"query-{q:06d}", f"doc-{d:06d}") for q, d in pairs), strict=True),
                strict=True,
            )
        ),
    }
    for name, columns in tables.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), folder / name / "part.parquet", row_group_size=5000)


def two_nights(folder: Path, count: int, scattered: bool) -> dict[str, Any]:
    """Both runs, and what the second had to do."""
    rng = np.random.default_rng(0)
    documents, queries = count // 10, count // 100
    pairs = {(q, int(d)) for q in range(queries) for d in rng.choice(documents, 100, replace=False)}
    write(folder, dict.fromkeys(range(documents), 0), range(queries), sorted(pairs))
    job = zipf_lake.zipf_job(folder, "first")
    costly = replace(job.stages[0], factory=SleepingFactory(folder / "turn"), parameters=PARAMETERS, scorer="sleeping")
    job = replace(job, stages=(costly,))
    spark = session.start("lakerank-incremental", plan_scale.CONF)
    try:
        first = run(SparkRunner(spark), Storage(), job)
        changed = {int(d) for d in rng.choice(documents, 10, replace=False)}
        gone = {int(q) for q in rng.choice(queries, 5, replace=False)}
        kept = {(q, d) for q, d in pairs if q not in gone}
        fresh = 0 if scattered else count // 1000
        new: set[tuple[int, int]] = set()
        while len(new) < count // 100:
            low, high = (0, documents) if scattered else (documents, documents + fresh)
            new |= {(int(rng.choice(sorted(set(range(queries)) - gone))), int(rng.integers(low, high)))} - kept
        versions = {n: int(n in changed) for n in range(documents + fresh)}
        write(folder, versions, sorted(set(range(queries)) - gone), sorted(kept | new))
        second = run(SparkRunner(spark), Storage(), replace(job, paths=replace(job.paths, run_id="second")))
    finally:
        spark.stop()
    needed = len(new) + sum(d in changed for _, d in kept - new)
    needed_tokens = second["forecast_tokens"] / first["forecast_tokens"]
    return {
        "first_seconds": first["seconds"],
        "second_seconds": second["seconds"],
        "second_over_first": round(second["seconds"] / first["seconds"], 4),
        "scored_first": first["scored"],
        "scored_second": second["scored"],
        "needed": needed,
        "reused": second["reused"],
        "dropped": second["dropped"],
        "dropped_expected": len(pairs) - len(kept),
        "tokens_second_over_first": round(needed_tokens, 4),
    }


def main() -> None:
    """Print both runs' figures; fail if a pair too many or too few was scored."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--scattered", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lakerank-nights-") as folder:
        figures = two_nights(Path(folder), options.pairs, options.scattered)
    print(json.dumps(figures))
    if (figures["scored_second"], figures["dropped"]) != (figures["needed"], figures["dropped_expected"]):
        sys.exit("the second run did not score or drop exactly what it had to")


if __name__ == "__main__":
    main()
