"""One driver of the rerank job, to be disturbed: `python job.py SETTINGS.json`; it exits as the command line does.

The lake is real, Spark is real, the storage is real; only the reranker costs nothing. `kill` in the settings names a
write: just before or after it, whichever process does it sends SIGKILL to the driver's whole process group and to
itself. `kill_worker` names a document: a Python worker that is to score it kills itself, once; `stop_worker` so often
as it says: the worker stops itself (SIGSTOP). `local`: without Spark.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lakerank.audit import Bounds
from lakerank.cli.job import run_job
from lakerank.cost import Sizing
from lakerank.lake.formats.output import OutputTable
from lakerank.lake.runs import RunPaths
from lakerank.lake.snapshot import TableFile
from lakerank.lake.storage import Storage, StorageOptions, join
from lakerank.plan.plan import PlanLimits, Tables
from lakerank.records import DocumentGroup, Reject, ScoredPair
from lakerank.rerank.publish import AuditRules
from lakerank.rerank.rank.write import RankRule
from lakerank.rerank.run import Rerank, run
from lakerank.rerank.stage import Stage
from lakerank.runner import LocalRunner
from lakerank.spark.runtime import session
from lakerank.spark.runtime.runner import SparkRunner

SCORER = "f00d"


@dataclass
class Kill:
    """Which write is the last: the `nth` whose URI matches `pattern`; `when` is before or after it. With `when`
    "reading" it is a Parquet file that is opened.

    `count` is a file that all processes count in, by its length.
    """

    pattern: str
    when: str
    nth: int
    group: int
    count: str

    def at(self, when: str, uri: str) -> None:
        if when != self.when or re.search(self.pattern, uri) is None:
            return
        with Path(self.count).open("ab") as count:
            count.write(b".")
        if Path(self.count).stat().st_size >= self.nth:
            os.killpg(self.group, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)


class DoomedStorage(Storage):
    """A storage whose process dies at a given write."""

    def __init__(self, options: StorageOptions, kill: Kill) -> None:
        super().__init__(options)
        self.kill = kill

    def create(self, uri: str, data: bytes) -> bool:
        self.kill.at("before", uri)
        created = super().create(uri, data)
        self.kill.at("after", uri)
        return created

    def replace(self, uri: str, data: bytes) -> None:
        self.kill.at("before", uri)
        super().replace(uri, data)
        self.kill.at("after", uri)

    def open_parquet(self, file: TableFile | str, *options: Any, **more: Any) -> Any:
        self.kill.at("reading", str(file))
        return super().open_parquet(file, *options, **more)

    def replace_if(self, uri: str, data: bytes, version: str | None) -> bool:
        self.kill.at("before", uri)
        replaced = super().replace_if(uri, data, version)
        self.kill.at("after", uri)
        return replaced


@dataclass
class Work:
    computed: int = 0
    pairwise: int = 0


@dataclass
class HashReranker:
    """Scores a pair by a hash of its contents."""

    pause_s: float
    kill_worker: tuple[str, str] | None
    stop_worker: tuple[str, list[str]] | None
    counters: Work = field(default_factory=lambda: Work())

    def score_groups(self, groups: Iterable[DocumentGroup]) -> Iterator[ScoredPair | Reject]:
        for group in groups:
            time.sleep(self.pause_s)
            if self.kill_worker and group.document.doc_id == self.kill_worker[0] and _first(self.kill_worker[1]):
                os.kill(os.getpid(), signal.SIGKILL)
            document, markers = self.stop_worker or ("", [])
            if group.document.doc_id == document and any(_first(marker) for marker in markers):
                os.kill(os.getpid(), signal.SIGSTOP)
            for query in group.queries:
                content = repr((query.text, group.document.text)).encode()
                logit = int.from_bytes(hashlib.blake2b(content, digest_size=2).digest()) / 8192 - 4
                yield ScoredPair(query.query_id, group.document.doc_id, logit, 5, 7, False, False)


@dataclass(frozen=True)
class HashFactory:
    pause_s: float
    kill_worker: tuple[str, str] | None
    stop_worker: tuple[str, list[str]] | None

    def __call__(self, device: str) -> HashReranker:
        return HashReranker(self.pause_s, self.kill_worker, self.stop_worker)


def _first(marker: str) -> bool:
    try:
        Path(marker).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def rerank(settings: dict[str, Any]) -> dict[str, Any]:
    """Run the job that the settings describe."""
    options = StorageOptions(**settings.get("storage", {}))
    kill = settings.get("kill")
    storage = (
        DoomedStorage(options, Kill(**kill, group=os.getpgrp(), count=f"{sys.argv[1]}.count"))
        if kill
        else Storage(options)
    )
    worker = settings.get("kill_worker")
    sizing = Sizing(3136, 602112, 10000)
    tables = [join(settings["tables"], f"{name}.parquet") for name in ("documents", "queries", "candidates")]
    factory = HashFactory(settings.get("pause_s", 0.0), tuple(worker) if worker else None, settings.get("stop_worker"))
    limits = PlanLimits(
        sizing, sizing, max_queries_per_group=8, unit_tokens=300, rows_per_file=settings.get("rows_per_file", 1_000_000)
    )
    job = Rerank(
        paths=RunPaths(settings["output"], settings.get("run_id", "r")),
        tables=Tables(*settings.get("addresses", tables)),
        stages=(Stage(SCORER, "", 1000, 0.0, factory, "cpu", limits, unit_deadline_s=settings.get("deadline_s", 600)),),
        rule=RankRule(logit_bias=0.0, thresholds=(0.5,), depth=None),
        audit=AuditRules(Bounds()),
        config_yaml="lake: {}\n",
        ranked_table=OutputTable(**settings["ranked_table"]) if "ranked_table" in settings else None,
    )
    stages = settings.get("stages", ["plan", "score", "publish"])
    if settings.get("local"):
        return run(LocalRunner(2), storage, job, stages)
    spark = session.start("faults", settings["spark"])
    try:
        return run(SparkRunner(spark), storage, job, stages)
    finally:
        spark.stop()


if __name__ == "__main__":
    run_job(lambda: rerank(json.loads(Path(sys.argv[1]).read_text())))
