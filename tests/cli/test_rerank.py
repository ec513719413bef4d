"""`lakerank rerank` before Spark starts: every fault of tables, model and device at once, and the order of stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from deltalake import write_deltalake

from lakerank.cli import resolve
from lakerank.cli.rerank import rerank
from lakerank.config import Config, bundled_config, load_config
from lakerank.lake.storage import Storage
from lakerank.rerank.plan.builder import ensure_plan
from lakerank.runner import LocalRunner


@pytest.fixture
def arguments(tmp_path: Path, no_session: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A lake of one pair, in this folder; what is under test must not get as far as Spark, which finds no Java."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    pq.write_table(pa.table({"doc_id": ["d"], "text": ["apple"]}), "documents.parquet")
    pq.write_table(pa.table({"query_id": ["q"], "text": ["apple"]}), "queries.parquet")
    pq.write_table(pa.table({"query_id": ["q"], "doc_id": ["d"]}), "candidates.parquet")
    names = ("documents", "queries", "candidates")
    settings = [*(f"lake.{name}={name}.parquet" for name in names), "lake.output=out", "lake.qrels=null"]
    return ["--config", "demo", "--run-id", "r", *(word for setting in settings for word in ("--set", setting))]


def _refused(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(rerank, arguments)
    assert done.exit_code == 1
    last: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return last


def test_faults_of_tables_device_and_model_are_listed_at_once(arguments: list[str], tmp_path: Path) -> None:
    pq.write_table(pa.table({"Doc_ID": ["d"], "text": [b""], "image": ["a path"]}), tmp_path / "documents.parquet")
    (tmp_path / "queries.parquet").write_text('{"query_id": "q"}')
    faulty = ["lake.candidates=~/no/such", "model.path=~/no/model", "model.device=cuda:1"]
    last = _refused(*arguments, *(word for setting in faulty for word in ("--set", setting)))
    assert last["error"] == "SchemaError"
    documents, queries, candidates, *rest = last["message"].splitlines()
    assert documents == (
        "lake.documents: documents.parquet: column 'image' should be binary (found: string) "
        "(found: Doc_ID, text, image); name other columns in lake.columns, see docs/tables.md, 'Columns'"
    )
    assert queries.startswith("lake.queries: ")
    assert queries.endswith("whole Parquet file (`lakerank ingest` makes tables of other files)")
    assert candidates == (
        f"lake.candidates: ~/no/such: there is no such file or folder (looked for {Path.home() / 'no' / 'such'})"
    )
    if not any(Path(driver).exists() for driver in resolve.GPU_DRIVERS):
        assert rest.pop(0) == "model.device: cuda:1, but this machine has no GPU; say cpu or auto"
    (model,) = rest
    assert model.startswith(str(Path.home() / "no" / "model"))


def test_without_java_a_job_that_needs_spark_says_how_to_get_one(arguments: list[str], tmp_path: Path) -> None:
    last = _refused(*arguments, "--set", "spark.local_pairs=0")
    assert last["error"] == "DependencyError"
    assert last["message"].startswith(
        f"Spark needs Java 17 or newer, and JAVA_HOME={tmp_path} has no bin/java. Install one"
    )


def test_stages_are_run_in_order(arguments: list[str]) -> None:
    arguments += ["--set", "spark.local_pairs=0"]  # what is not refused before Spark starts ends for lack of Java
    for stage in ("score", "publish", "score,publish"):
        last = _refused(*arguments, "--stage", stage)
        assert last["error"] == "RunConflictError"
        assert last["message"].endswith("run 'r' has no plan yet; run --stage plan first")
    config: Config = load_config(bundled_config("demo") or "", arguments[5::2])
    job = resolve.rerank_job(config, "r", Storage())
    ensure_plan(LocalRunner(), Storage(), job.paths, job.tables, job.stages[0].scorer, job.stages[0].limits)
    last = _refused(*arguments, "--stage", "publish")
    assert last["message"] == "run r has 1 of 1 units without scores: run --stage score first"


def test_check_counts_the_rows_of_tables(arguments: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(rerank, [*arguments, "--stage", "check", "--min-rows", "queries=0"])
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "rows": {"documents": 1, "queries": 1, "candidates": 1},
        "min_rows": {"documents": 1, "queries": 0, "candidates": 1},
    }
    assert not (tmp_path / "out").exists()
    empty = pq.read_table(tmp_path / "candidates.parquet").slice(1)
    (tmp_path / "candidates.parquet").unlink()
    (tmp_path / "candidates.parquet").mkdir()
    pq.write_table(empty, tmp_path / "candidates.parquet" / "part-1.parquet")
    last = _refused(*arguments, "--stage", "check", "--min-rows", "documents=2")
    assert last == {
        "error": "InputError",
        "message": "lake.documents: documents.parquet has 1 rows, expected at least 2\n"
        "lake.candidates: candidates.parquet has 0 rows, expected at least 1",
    }


@pytest.mark.parametrize("options", [["--min-rows", "queries=1"], ["--stage", "check", "--min-rows", "qrels=x"]])
def test_bounds_of_rows_are_checked(arguments: list[str], options: list[str]) -> None:
    done = CliRunner().invoke(rerank, [*arguments, *options])
    assert done.exit_code == 2
    assert "--min-rows" in json.loads(done.stdout.splitlines()[-1])["message"]


def test_a_table_that_cannot_take_the_rows_is_found_before_the_job_starts(arguments: list[str], tmp_path: Path) -> None:
    write_deltalake(tmp_path / "table", pa.table({"query_id": ["q"]}))
    last = _refused(*arguments, "--set", "lake.ranked_table=delta+table", "--set", "lake.queries=no")
    queries, table = last["message"].splitlines()
    assert queries.startswith("lake.queries: no: ")
    assert table.startswith("lake.ranked_table: delta+table: the table has no column doc_id (string), rank (int32)")
    assert not (tmp_path / "out").exists()


def test_a_table_that_is_read_is_not_overwritten(arguments: list[str]) -> None:
    tables = ("lake.documents=delta+a@3", "lake.ranked_table=delta+a")
    done = CliRunner().invoke(rerank, [*arguments, *(word for setting in tables for word in ("--set", setting))])
    assert done.exit_code == 2
    assert "delta+a is a table that is read: name another" in done.stdout
