"""`jobs/clean.py` lists, deletes only with `--apply`, and ends with one JSON object."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lakerank.cli.runs import clean
from lakerank.lake.runs import RunPaths
from lakerank.lake.storage import Storage, join

ROOT = Path(__file__).parents[1]


def run_clean(output: str, *arguments: str, settings: tuple[str, ...] = ()) -> Result:
    given = ["--config", str(ROOT / "conf" / "demo.yaml"), "--set", f"lake.output={output}"]
    lake = ROOT / "lib/lakerank/ingest/demo_lake"
    for name in ("documents", "queries", "candidates"):
        given += ["--set", f"lake.{name}={lake / name}.parquet"]
    return CliRunner().invoke(clean, [*given, *(word for s in settings for word in ("--set", s)), *arguments])


@pytest.fixture
def output(tmp_path: Path) -> str:
    """An output folder with a run that was given up three days ago."""
    paths = RunPaths(str(tmp_path / "out"), "given-up")
    for uri in (paths.started, join(paths.ranked, "part-00000.parquet")):
        Storage().create(uri, b"{}")
        os.utime(uri, (time.time() - 3 * 86400,) * 2)
    return paths.output


def test_nothing_is_deleted_unless_told(output: str) -> None:
    listed = run_clean(output)
    assert listed.exit_code == 0, listed.output
    assert "unfinished run    runs/given-up: 1 file, 2 bytes" in listed.stdout
    summary = json.loads(listed.stdout.splitlines()[-1])
    assert summary["listed"] == {"files": 2, "bytes": 4}
    assert summary["deleted"] == {"files": 0, "bytes": 0}
    assert (Path(output) / "runs/given-up/started.json").exists()


def test_what_is_listed_is_deleted_when_told(output: str) -> None:
    summary = json.loads(run_clean(output, "--apply").stdout.splitlines()[-1])
    assert summary["deleted"] == summary["listed"] == {"files": 2, "bytes": 4}
    assert summary["by_reason"] == {"unfinished run": 2}
    assert (summary["applied"], summary["complete"], summary["kept_runs"]) == (True, True, [])
    assert [path for path in Path(output).rglob("*") if path.is_file()] == []


def test_a_longer_grace_keeps_it(output: str) -> None:
    summary = json.loads(run_clean(output, "--grace-hours", "100").stdout.splitlines()[-1])
    assert (summary["listed"]["files"], summary["kept_runs"]) == (0, ["given-up"])


def test_a_model_that_is_not_here_keeps_the_scores_of_all(output: str, tmp_path: Path) -> None:
    unit = Path(output) / "scores/scorer=f00d/u.parquet"
    unit.parent.mkdir(parents=True)
    unit.write_bytes(b"x")
    os.utime(unit, (time.time() - 3 * 86400,) * 2)
    known = json.loads(run_clean(output).stdout.splitlines()[-1])
    assert known["by_reason"]["old scorer"] == 1
    unknown = json.loads(run_clean(output, settings=(f"model.path={tmp_path / 'gone'}",)).stdout.splitlines()[-1])
    assert "old scorer" not in unknown["by_reason"]


def test_the_current_run_cannot_be_given_up() -> None:
    assert run_clean("out", "--keep-runs", "0").exit_code == 2
