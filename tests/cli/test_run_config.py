"""evaluate and export read what a run was made from, whatever --config and --set name: never another lake's data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner
from deltalake import write_deltalake

from lakerank.cli.export import _job, export
from lakerank.cli.resolve import CommandLine, recorded, run_config
from lakerank.config import Config, resolve_config
from lakerank.errors import ConfigError, RunNotFoundError
from lakerank.lake.publication import publish, set_aside
from lakerank.lake.runs import RunPaths
from lakerank.lake.storage import Storage
from lakerank.settings import parse_settings
from lakerank_evaluation.cli import evaluate

pytestmark = pytest.mark.usefixtures("no_session")

CONFIG = Path(__file__).parents[2] / "conf" / "demo.yaml"


def lake_config(output: Path, *settings: str, **tables: object) -> Config:
    own = {name: f"/lake/{name}" for name in ("documents", "queries", "candidates", "qrels")} | tables
    return resolve_config({"lake": {**own, "output": str(output)}}, settings)


def record(output: Path, config: Config, run_id: str = "r") -> None:
    """The config that a run left in its folder."""
    Storage().replace(RunPaths(str(output), run_id).config, recorded(config, Storage(), run_id).encode())


def read(output: Path, *overrides: str, other_tables: bool = False, **values: Any) -> Config:
    """What a command with the bundled config and these `--set` reads of run r."""
    given = resolve_config(values, [f"lake.output={output}", *overrides])
    return run_config(Storage(), CommandLine(given, "conf/demo.yaml", overrides), "r", other_tables)


def test_a_run_is_read_with_its_own_tables_model_and_limits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = lake_config(tmp_path, "model.path=/models/mine", "ranking.depth=7", "spark.rows_per_file=5")
    record(tmp_path, own)
    caplog.set_level("INFO", "lakerank")
    found = read(tmp_path, spark={"conf": {"spark.master": "local[1]"}})
    assert (found.lake, found.model, found.ranking) == (own.lake, own.model, own.ranking)
    assert found.spark.conf == {"spark.master": "local[1]"}, "where Spark runs is the command's affair"
    (line,) = caplog.messages
    for name in ("lake.documents", "lake.queries", "lake.candidates", "lake.qrels", "conf/demo.yaml"):
        assert name in line


def test_a_config_of_the_same_tables_is_passed_over_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tables = {"documents": "mine/documents", "queries": "mine/queries", "candidates": "delta+mine/candidates"}
    record(tmp_path, lake_config(tmp_path, **tables, qrels=None))
    caplog.set_level("INFO", "lakerank")
    found = read(tmp_path, "lake.queries=./mine/../mine/queries", lake={**tables, "output": "o"})
    assert found.lake.documents == str(tmp_path / "mine/documents")
    assert found.lake.candidates == f"delta+{tmp_path}/mine/candidates"
    assert caplog.messages == []


def test_output_and_storage_are_the_commands(tmp_path: Path) -> None:
    record(tmp_path, lake_config(tmp_path / "elsewhere", "lake.storage.region=north"))
    found = read(tmp_path, "lake.storage.region=south")
    assert (found.lake.output, found.lake.storage.region) == (str(tmp_path), "south")


@pytest.mark.parametrize("own", [None, "/lake/old"])
def test_judgements_that_the_config_of_the_same_lake_names_later_are_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, own: str | None
) -> None:
    record(tmp_path, lake_config(tmp_path, qrels=own))
    caplog.set_level("INFO", "lakerank")
    lake = {name: f"/lake/{name}" for name in ("documents", "queries", "candidates", "qrels")}
    assert read(tmp_path, lake={**lake, "output": "o"}).lake.qrels == "/lake/qrels"
    assert caplog.messages == ["run r is judged by lake.qrels of conf/demo.yaml: its other tables are the run's"]
    assert read(tmp_path, "lake.qrels=/mine", lake={**lake, "output": "o"}).lake.qrels == "/mine"
    for name in ("documents", "queries", "candidates"):
        assert read(tmp_path, lake={**lake, name: "/other", "output": "o"}).lake.qrels == own, "another lake's"
    assert read(tmp_path).lake.qrels == own, "the bundled lake's judge nothing here"
    del lake["qrels"]
    assert read(tmp_path, lake={**lake, "output": "o"}).lake.qrels == own


def test_judgements_may_be_others(tmp_path: Path) -> None:
    record(tmp_path, lake_config(tmp_path))
    found = read(tmp_path, "lake.qrels=/other/qrels")
    assert (found.lake.qrels, found.lake.queries) == ("/other/qrels", "/lake/queries")


@pytest.mark.parametrize("name", ["documents", "queries", "candidates"])
def test_any_other_table_needs_leave(tmp_path: Path, name: str) -> None:
    record(tmp_path, lake_config(tmp_path))
    assert read(tmp_path, f"lake.{name}=/lake/{name}").lake.queries == "/lake/queries"
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, f"lake.{name}=/other/{name}")
    assert f"--set lake.{name}=/other/{name}: run 'r' was made with /lake/{name}" in str(refused.value)
    assert "--other-tables" in str(refused.value)
    found = read(tmp_path, f"lake.{name}=/other/{name}", other_tables=True)
    assert getattr(found.lake, name) == f"/other/{name}"


@pytest.mark.parametrize("setting", ["ranking.depth=3", "model.path=/models/other", "scoring.max_length=4096"])
def test_what_a_run_was_made_with_is_not_changed_afterwards(tmp_path: Path, setting: str) -> None:
    record(tmp_path, lake_config(tmp_path))
    with pytest.raises(ConfigError, match=rf"--set {setting}: run 'r' was made with"):
        read(tmp_path, setting, other_tables=True)


def test_the_config_of_an_earlier_version_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It had relative paths, and not every setting."""
    monkeypatch.chdir(tmp_path)
    tables = {name: f"mine/{name}" for name in ("documents", "queries", "candidates")}
    old = json.dumps({"lake": {**tables, "output": str(tmp_path)}, "audit": {"max_reject_rate": 0.5}})
    Storage().replace(RunPaths(str(tmp_path), "r").config, old.encode())
    assert read(tmp_path).lake.documents == "mine/documents"
    assert read(tmp_path, f"lake.queries={tmp_path}/mine/queries").lake.qrels is None


def test_a_run_that_left_no_config_is_read_with_leave_only(tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError, match="what run 'r' was made from is not known"):
        read(tmp_path)
    assert read(tmp_path, "lake.queries=/mine", other_tables=True).lake.queries == "/mine"


def command_line(lake: Any, *arguments: str) -> list[str]:
    """A command of the bundled lake about a run of another."""
    return ["--config", str(CONFIG), "--set", f"lake.output={lake.paths.output}", *arguments]


def last_line(done: Any) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return line


def test_evaluate_judges_a_run_by_its_own_tables(small_lake: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "lakerank")
    done = CliRunner().invoke(evaluate, command_line(small_lake, "--run-id", "r1"))
    assert done.exit_code == 0, done.output
    assert last_line(done)["queries"] == 3, "the bundled lake has 395"
    expected = small_lake.evaluated().summary()
    assert last_line(done)["reranked"] == expected["reranked"]
    assert caplog.text.count("passed over") == 1


def test_evaluate_takes_current_for_either_run(small_lake: Any) -> None:
    small_lake.add_run("r0", {"q1": ["b", "a", "d"]}, complete=True)
    publish(Storage(), RunPaths(small_lake.paths.output, "r0"))
    for runs in (("r1", "current"), ("current", "r1")):
        arguments = command_line(small_lake, "--run-id", runs[0], "--against", runs[1])
        found = last_line(CliRunner().invoke(evaluate, arguments))
        assert {found["run_id"], found["against"]["run_id"]} == {"r0", "r1"}


def test_the_current_run_is_the_default(small_lake: Any, tmp_path: Path) -> None:
    publish(Storage(), small_lake.paths)
    found = last_line(CliRunner().invoke(evaluate, command_line(small_lake)))
    assert (found["run_id"], found["queries"]) == ("r1", 3)
    to = ("--format", "svmrank", "--name", "x", "--to", str(tmp_path))  # not empty: refused only once the run is found
    assert "not empty" in last_line(CliRunner().invoke(export, command_line(small_lake, *to)))["message"]


def test_evaluate_says_that_the_other_run_has_other_tables(small_lake: Any, caplog: pytest.LogCaptureFixture) -> None:
    small_lake.add_run("r0", {"q1": ["b", "a", "d"]}, complete=True)
    record(Path(small_lake.paths.output), lake_config(Path(small_lake.paths.output)), "r0")
    done = CliRunner().invoke(evaluate, command_line(small_lake, "--run-id", "r1", "--against", "r0"))
    assert done.exit_code == 0, done.output
    assert "run r0 was made from other tables than run r1: lake.documents, lake.queries, lake.candidates" in caplog.text


@pytest.mark.parametrize("options", [("--run-id", "nosuch"), ("--run-id", "r1", "--against", "nosuch")])
def test_evaluate_names_the_runs_that_there_are(small_lake: Any, options: tuple[str, ...]) -> None:
    done = CliRunner().invoke(evaluate, command_line(small_lake, *options))
    assert done.exit_code == 1
    assert last_line(done)["message"] == f"no run 'nosuch' in {small_lake.paths.output}; published: r1"


def test_evaluate_reads_a_run_whose_audit_failed_where_it_is_set_aside(small_lake: Any) -> None:
    expected = small_lake.evaluated().summary()["reranked"]
    Path(small_lake.paths.manifest).unlink()
    assert set_aside(Storage(), small_lake.paths)
    done = CliRunner().invoke(evaluate, command_line(small_lake, "--run-id", "r1"))
    assert last_line(done)["reranked"] == expected


def test_an_evaluation_without_judgements_says_how_to_name_some(small_lake: Any) -> None:
    own = {name: getattr(small_lake.tables, name) for name in ("documents", "queries", "candidates")}
    output = Path(small_lake.paths.output)
    record(output, lake_config(output, **own, qrels=None), "r1")
    done = CliRunner().invoke(evaluate, command_line(small_lake, "--run-id", "r1"))
    assert done.exit_code == 2
    assert "--set lake.qrels=" in last_line(done)["message"]
    given = ("--set", f"lake.qrels={small_lake.tables.qrels}")
    assert last_line(CliRunner().invoke(evaluate, command_line(small_lake, "--run-id", "r1", *given)))["queries"] == 3


def test_a_refused_table_ends_a_command_with_status_2(small_lake: Any, tmp_path: Path) -> None:
    wrong = command_line(small_lake, "--set", "lake.queries=/other", "--run-id", "r1")
    to = ("--format", "quepid-csv", "--to", str(tmp_path / "export"))
    for done in (CliRunner().invoke(evaluate, wrong), CliRunner().invoke(export, [*wrong, *to])):
        assert done.exit_code == 2
        assert "lake.queries=/other: run 'r1' was made with" in last_line(done)["message"]
    assert not (tmp_path / "export").exists()


def test_an_export_takes_query_texts_from_the_runs_own_table(tmp_path: Path) -> None:
    own = lake_config(tmp_path)
    record(tmp_path, own)
    options = {"run_id": "r", "since": None, "format": "quepid-csv", "to": "x", "depth": None, "pairs": None}
    job = _job(read(tmp_path), name=None, field="f", part_rows=1, part_bytes=1, **options)
    assert (job.queries, job.candidates) == ("/lake/queries", "/lake/candidates")


def test_a_run_keeps_its_tables_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tables = {"documents": "mine/docs", "queries": "s3://b/q", "candidates": "embedded", "ranked_table": "delta+lists"}
    kept = recorded(lake_config(tmp_path, **tables), Storage(), "r")
    lake = resolve_config(parse_settings(kept.encode(), "kept")).lake
    assert (lake.documents, lake.queries, lake.candidates) == (str(tmp_path / "mine/docs"), "s3://b/q", "embedded")
    assert lake.ranked_table == f"delta+{tmp_path}/lists"


def test_judgements_are_those_of_the_snapshot_of_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = pa.table({"query_id": ["q"], "doc_id": ["d"], "relevance": [1]})
    write_deltalake(tmp_path / "qrels", rows)
    record(tmp_path / "out", lake_config(tmp_path / "out", qrels="delta+qrels"))
    write_deltalake(tmp_path / "qrels", rows, mode="append")
    record(tmp_path / "out", lake_config(tmp_path / "out", qrels="delta+qrels"))  # as a run does that is resumed
    then, tables = f"delta+{tmp_path}/qrels@0", {name: f"/lake/{name}" for name in ("documents", "queries")}
    same = {"lake": {**tables, "candidates": "/lake/candidates", "qrels": "delta+qrels", "output": "out"}}
    for values in ({}, same):
        assert read(tmp_path / "out", **values).lake.qrels == then
    assert read(tmp_path / "out", "lake.qrels=delta+qrels").lake.qrels == "delta+qrels", "the newest, when it is named"
