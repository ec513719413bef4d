"""The command lines with everything on `s3://`: a run, its evaluation, an export; keys are shown nowhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stores import SERVER, S3Server

from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import parquet_bytes

pytestmark = [pytest.mark.spark, pytest.mark.nightly]

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "conf" / "demo.yaml"
WORDS = ("red apple", "locomotive", "yellow pear", "blue boat", "green tree", "small dog")


def write_lake(storage: Storage, folder: str) -> None:
    pairs = [(f"q{q}", f"d{d}", rank + 1) for q in range(3) for rank, d in enumerate((q, q + 1, 4, 5))]
    pairs.append(("q0", "nowhere", 9))
    query_ids, doc_ids, ranks = (list(column) for column in zip(*pairs, strict=True))
    tables: dict[str, dict[str, list[Any]]] = {
        "documents": {"doc_id": [f"d{i}" for i in range(6)], "text": list(WORDS)},
        "queries": {"query_id": ["q0", "q1", "q2"], "text": ["apple", "train", "fruit"]},
        "candidates": {"query_id": query_ids, "doc_id": doc_ids, "first_stage_rank": ranks},
        "qrels": {"query_id": ["q0", "q1", "q2"], "doc_id": ["d0", "d1", "d2"], "relevance": [1, 1, 1]},
    }
    for name, columns in tables.items():
        storage.create(join(folder, name, "part-0.parquet"), parquet_bytes(pa.table(columns), 2))


@dataclass(frozen=True)
class Done:
    """What a command left: exit status, the last line, and everything it printed."""

    status: int
    summary: dict[str, Any]
    words: str


@dataclass(frozen=True)
class Commands:
    """Command lines of this repository, run on a lake in the bucket."""

    server: S3Server
    storage: Storage
    folder: str
    checkpoint: Path
    scratch: Path
    outputs: list[str]

    def run(self, job: str, *arguments: str, keys: dict[str, str] | None = None) -> Done:
        settings = {f"lake.{name}": join(self.folder, name) for name in ("documents", "queries", "candidates", "qrels")}
        settings |= {"lake.output": join(self.folder, "out"), "lake.storage.endpoint_url": self.server.endpoint}
        settings |= {"model.path": str(self.checkpoint), "spark.partitions": "2", "lake.storage.max_attempts": "2"}
        settings["spark.local_pairs"] = "0"
        settings["spark.conf"] = "{spark.master: 'local[2]', spark.ui.enabled: false, spark.driver.memory: 1g}"
        given = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        done = subprocess.run(
            [sys.executable, str(ROOT / f"jobs/{job}.py"), "-v", "--config", str(CONFIG), *given, *arguments],
            capture_output=True, text=True, check=False, timeout=400, cwd=self.scratch,
            env=os.environ | self.server.environment() | {"PYSPARK_PYTHON": sys.executable} | (keys or {}),
        )  # fmt: skip
        self.outputs.append(done.stdout + done.stderr)
        return Done(done.returncode, json.loads(done.stdout.strip().splitlines()[-1]), done.stdout + done.stderr)

    def ranked(self, run_id: str) -> pa.Table:
        folder = join(self.folder, "out/ranked", f"run_id={run_id}")
        parts = [self.storage.read_bytes(join(folder, name)) for name in self.storage.list_names(folder)]
        return pa.concat_tables(pq.read_table(pa.BufferReader(part)) for part in parts)


@pytest.fixture
def commands(
    s3_server: S3Server, s3_storage: Storage, s3_folder: str, tiny_checkpoint: Path, tmp_path: Path
) -> Commands:
    write_lake(s3_storage, s3_folder)
    return Commands(s3_server, s3_storage, s3_folder, tiny_checkpoint, tmp_path, [])


def test_a_run_on_s3_shows_no_keys(commands: Commands) -> None:
    ran = commands.run("rerank", "--run-id", "r1")
    assert ran.status == 0, ran.words
    assert (ran.summary["scored"], ran.summary["rejected"], ran.summary["published"]) == (12, 1, True)
    assert commands.ranked("r1").num_rows == 12
    cleaned = commands.run("clean", "--apply")
    assert (cleaned.status, cleaned.summary["deleted"]["files"], cleaned.summary["kept_runs"]) == (0, 0, ["r1"])
    check_no_keys(commands)


@pytest.mark.skipif(SERVER == "moto", reason="with a real server only: four Spark sessions")
def test_a_run_its_evaluation_and_its_export_on_s3_are_as_on_local_files_and_show_no_keys(
    commands: Commands, tmp_path: Path
) -> None:
    assert commands.run("rerank", "--run-id", "r1").status == 0
    local = replace(commands, storage=Storage(), folder=str(tmp_path / "local"))
    write_lake(local.storage, local.folder)
    assert local.run("rerank", "--run-id", "r1").status == 0
    assert commands.ranked("r1").equals(local.ranked("r1"))
    assert commands.run("rerank", "--run-id", "r1").summary["published"] is True
    evaluated = commands.run("evaluate", "--run-id", "r1")
    assert evaluated.status == 0, evaluated.words
    exported = commands.run(
        "export", "--run-id", "current", "--format", "trec-run", "--to", join(commands.folder, "trec")
    )
    assert exported.status == 0, exported.words
    check_no_keys(commands)


@pytest.mark.skipif(SERVER == "moto", reason="moto checks no keys")
def test_wrong_keys_stop_a_job_with_a_message_that_shows_none(commands: Commands) -> None:
    wrong = {"AWS_SECRET_ACCESS_KEY": "quite-another-secret"}
    failed = commands.run("rerank", "--run-id", "r1", keys=wrong)
    assert failed.status == 1
    assert "check the credentials" in failed.summary["message"]
    assert commands.folder in failed.summary["message"], "bucket and key are named"
    assert wrong["AWS_SECRET_ACCESS_KEY"] not in failed.words
    check_no_keys(commands)


def check_no_keys(commands: Commands) -> None:
    """Neither in anything printed nor in any file of the lake: tables, plans, manifests, configs, report, exports."""
    stored = {file.uri: commands.storage.read_bytes(file.uri) for file in commands.storage.walk(commands.folder)}
    assert len(stored) > 3
    for key in (commands.server.secret_key, commands.server.access_key):
        assert not [uri for uri, content in stored.items() if key.encode() in content]
        assert not any(key in words for words in commands.outputs)
