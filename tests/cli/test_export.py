"""jobs/export.py before Spark starts: what it finds wrong, it says at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lakerank.cli.export import export
from lakerank.lake.publication import publish
from lakerank.lake.runs import RunPaths, write_manifest
from lakerank.lake.storage import Storage, join

CONFIG = Path(__file__).parents[2] / "conf" / "demo.yaml"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An output folder with a published run of no lists."""
    paths, moment = RunPaths(str(tmp_path / "out"), "r"), "2026-01-01T00:00:00+00:00"
    write_manifest(Storage(), paths, {"published_at": moment, "scorer": "f00d", "ranked_files": []})
    publish(Storage(), paths)
    Storage().replace(paths.config, b"lake: {documents: d, queries: q, candidates: c, output: o}")
    return tmp_path / "out"


def run(output: Path, to: str) -> Any:
    settings = ["--config", str(CONFIG), "--set", f"lake.output={output}"]
    return CliRunner().invoke(export, [*settings, "--run-id", "r", "--format", "trec-run", "--to", to])


def test_a_place_that_cannot_be_written_is_named_before_spark_starts(output: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    place = str(tmp_path / "file" / "below")
    done = run(output, place)
    assert done.exit_code == 1
    assert place in json.loads(done.stdout.splitlines()[-1])["message"]
    assert "starting Spark" not in done.stderr


def test_a_run_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = run(tmp_path, str(tmp_path / "export"))
    assert done.exit_code == 1
    message = json.loads(done.stdout.splitlines()[-1])["message"]
    assert message == f"no run 'r' in {tmp_path}; published: none"


def test_a_run_whose_audit_failed_is_not_exported(output: Path, tmp_path: Path) -> None:
    Path(RunPaths(str(output), "r").manifest).unlink()
    Storage().replace(join(RunPaths(str(output), "r").unpublished, "part-00000.parquet"), b"x")
    done = run(output, str(tmp_path / "export"))
    assert done.exit_code == 1
    assert "run 'r' is not published; if its audit failed" in json.loads(done.stdout.splitlines()[-1])["message"]
