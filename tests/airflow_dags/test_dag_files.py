"""The DAG files as Airflow's parser sees them: what they import, how long they take, what the DAGs promise."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from lakerank.lake.runs import check_run_id

DAGS = Path(__file__).parents[2] / "airflow_dags"
FILES = sorted(DAGS.rglob("*.py"))

DESCRIBE = """
import time
import airflow.sdk
from airflow.providers.apache.spark.operators import spark_submit   # the parser imports both once for all files
from airflow.serialization.serialized_objects import DagSerialization
import importlib
result = {"seconds": {}}
for name in ("rerank_nightly", "rerank_backfill", "rerank_clean"):
    started = time.perf_counter()
    module = importlib.import_module(name)
    result["seconds"][name] = time.perf_counter() - started
    for dag in module.dags:
        DagSerialization.to_dict(dag)
        result[dag.dag_id] = {
            "doc": dag.doc_md, "active": dag.max_active_runs, "schedule": type(dag.timetable).__name__,
            "tags": sorted(dag.tags), "file": name,
            "tasks": {
                task.task_id: {
                    "downstream": sorted(task.downstream_task_ids), "pool": task.pool, "retries": task.retries,
                    "backoff": bool(task.retry_exponential_backoff), "timeout": bool(task.execution_timeout),
                    "alerts": bool(task.on_failure_callback), "outlets": [asset.name for asset in task.outlets or []],
                    "connection": getattr(task, "_conn_id", None) or getattr(task, "partial_kwargs", {}).get("conn_id"),
                    "links": [link.name for link in task.operator_extra_links],
                    "arguments": getattr(task, "arguments", None),
                } for task in dag.tasks
            },
        }
        if name == "rerank_nightly":
            result[dag.dag_id]["assets"] = [asset.name for asset in dag.timetable.asset_condition.objects]
        if name == "rerank_backfill":
            result[dag.dag_id]["triggers"] = dag.get_task("rerank").partial_kwargs["trigger_dag_id"]
"""


@pytest.fixture(scope="module")
def dags(small_airflow: Any) -> dict[str, Any]:
    return dict(small_airflow.python(DESCRIBE))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_only_airflow_and_the_standard_library_are_imported(path: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    roots = {name.partition(".")[0] for name in imported}
    assert roots - sys.stdlib_module_names <= {"airflow", "lake_tasks"}


def test_each_file_parses_in_under_a_second(dags: dict[str, Any]) -> None:
    assert max(dags["seconds"].values()) < 1, dags["seconds"]


def test_each_lake_has_the_three_dags(dags: dict[str, Any]) -> None:
    lakes = {name: dag for name, dag in dags.items() if name != "seconds"}
    files = ("rerank_backfill", "rerank_clean", "rerank_nightly")
    assert sorted(lakes) == sorted(f"{file}_{lake}" for file in files for lake in ("manuals", "products"))
    for name, dag in lakes.items():
        assert dag["doc"].startswith("### ")
        assert dag["active"] == 1
        assert dag["tags"] == sorted(["lakerank", name.removeprefix(f"{dag['file']}_")])


def test_nothing_of_a_lake_starts_another(dags: dict[str, Any]) -> None:
    for lake in ("manuals", "products"):
        nightly = dags[f"rerank_nightly_{lake}"]
        assert nightly["schedule"] == "AssetOrTimeSchedule"
        assert nightly["assets"] == [f"lakerank_candidates_{lake}"]
        outlets = {name: task["outlets"] for name, task in nightly["tasks"].items() if task["outlets"]}
        published, exported = f"lakerank_published_{lake}", f"lakerank_exported_{lake}"
        assert outlets == {"audit_and_publish": [published], "export": [exported]}
        assert dags[f"rerank_backfill_{lake}"]["triggers"] == f"rerank_nightly_{lake}"


def test_a_published_run_is_evaluated_and_exported_side_by_side(dags: dict[str, Any]) -> None:
    tasks = dags["rerank_nightly_manuals"]["tasks"]
    assert {name: task["downstream"] for name, task in tasks.items()} == {
        "check": ["plan"],
        "plan": ["score"],
        "score": ["audit_and_publish"],
        "audit_and_publish": ["choose_exports", "evaluate"],
        "evaluate": [],
        "choose_exports": ["export"],
        "export": ["load"],
        "load": [],
    }


def test_a_lake_can_fill_its_tables_first(dags: dict[str, Any]) -> None:
    tasks = dags["rerank_nightly_products"]["tasks"]
    assert tasks["ingest"]["downstream"] == ["candidates"]
    assert tasks["candidates"]["downstream"] == ["check"]
    assert tasks["candidates"]["arguments"] == ["--depth", "50", "--verbose"]
    assert tasks["check"]["arguments"] == ["--stage", "check", "--min-rows", "documents=5"]
    check = dags["rerank_nightly_manuals"]["tasks"]["check"]
    assert check["arguments"] == ["--stage", "check", "--min-rows", "candidates=1000"]


def test_only_scoring_holds_gpus(dags: dict[str, Any]) -> None:
    jobs = {name: task for name, task in dags["rerank_nightly_products"]["tasks"].items() if task["connection"]}
    buffered = {name: (task["connection"], task["pool"]) for name, task in jobs.items()}
    assert buffered.pop("score") == ("lakerank_gpu", "small_gpu")
    assert dags["rerank_nightly_manuals"]["tasks"]["score"]["pool"] == "lakerank_gpu"
    assert set(buffered) == {"ingest", "candidates", "check", "plan", "audit_and_publish", "evaluate", "export"}
    assert set(buffered.values()) == {("lakerank_cpu", "default_pool")}


def test_every_job_is_tried_again_bounded_in_time_and_reported(dags: dict[str, Any]) -> None:
    jobs = [
        task
        for dag in ("rerank_nightly_products", "rerank_clean_products")
        for task in dags[dag]["tasks"].values()
        if task["connection"]
    ]
    assert len(jobs) == 9
    for task in jobs:
        assert task["retries"] == 3
        assert task["backoff"]
        assert task["timeout"]
        assert task["alerts"]
        assert "report.html" in task["links"]


LOGIC = """
import os
from datetime import datetime, UTC
from types import SimpleNamespace as Record
from zoneinfo import ZoneInfo
from lake_tasks.exports import export_arguments
from lake_tasks.lakes import lakes_of, read_lakes
from lake_tasks.run_names import LakeRun, moment_of, moments, run_name
from lake_tasks.settings import Settings
from lake_tasks.summaries import final_fault, last_json_line, read_summary

dated = Record(logical_date=datetime(2026, 1, 31, 2, tzinfo=UTC), run_after=datetime(2026, 2, 3, tzinfo=UTC))
landed = Record(logical_date=None, run_after=datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=UTC))

def name(run, date=None, zone="UTC"):
    return run_name(moment_of(run, {"date": date}, zone))

def fault(given):
    try:
        return str(lakes_of(given, "Variable 'lakerank'"))
    except ValueError as error:
        return str(error)

def unreadable(text):
    path = os.environ["LAKERANK_LAKES"] = os.path.join(os.environ["AIRFLOW_HOME"], "other.yaml")
    if text is not None:
        with open(path, "w") as file:
            file.write(text)
    try:
        return read_lakes()
    except ValueError as error:
        return str(error)

past = [{"format": "csv", "run_id": "r1"}, {"format": "trec-run", "run_id": "r2"}, {"format": "csv", "run_id": "r3"}]
requested = {"format": "csv", "to": "s3://feeds/{run_id}", "since": "last", "depth": None}

result = {
    "keys": [key for key in Settings.__dataclass_fields__ if key != "lake"],
    "exports": [export_arguments(requested, run, past) for run in ("r4", "r3", "r1")],
    "names": [name(dated), name(landed), name(dated, "2026-01-30"), name(dated, zone="Europe/Berlin"),
              name(dated, "2026-01-31T00:00:00+01:00", "Europe/Berlin")],
    "twice": [run_name(datetime(2026, 10, 25, hour, 30, tzinfo=UTC).astimezone(ZoneInfo("Europe/Berlin")))
              for hour in (0, 1)],
    "filled": LakeRun(moment_of(dated, {}, "Europe/Berlin"), "manuals").fill("a={date} b={run_id} {lake} c={x: 1}"),
    "autumn": [name(dated, moment, "Europe/Berlin")
               for moment in moments("30 * * * *", "Europe/Berlin", "2026-10-25", "2026-10-25")],
    "moments": moments("0 2 * * *", "Europe/Berlin", "2026-03-28", "2026-03-30"),
    "midnights": moments(None, "UTC", "2026-03-28", "2026-03-29"),
    "faults": fault({"nonsense": 1, "exports": {}, "keep_runs": True, "timeout_minutes": {"scores": 1}}),
    "lakes": fault({"defaults": {"config": "a.yaml"}, "lakes": {"a": {"keep_runs": "9"}, "2026": {}, "b": [1]}}),
    "loads": fault({"config": "a", "exports": [
        {"format": "parquet", "to": "x", "load": {"into": "postgres", "conn_id": "c", "tabel": "t"}},
        {"format": "csv", "to": "x", "load": {"into": "mysql"}}, {"format": "csv"},
    ]}),
    "unreadable": [unreadable(text) for text in (None, "{a: [", "")],
    "not an object": fault([1]), "no lake": fault({"lakes": {}}),
    "line": last_json_line('noise\\n{"a": 1}\\n{"b": 2}\\nnot {json}\\n{broken\\n'),
    "no line": last_json_line("Killed"),
    "unread": read_summary("/nowhere/at/all.json"),
    "final": [
        final_fault({"published": False, "failed_audits": ["reject rate"]}),
        final_fault({"error": "ConfigError", "message": "no such setting"}),
        final_fault({"error": "StorageError", "message": "away"}),
        final_fault({"published": True, "failed_audits": ["reject rate"]}),
    ],
}
"""


@pytest.fixture(scope="module")
def logic(small_airflow: Any) -> dict[str, Any]:
    return dict(small_airflow.python(LOGIC))


def test_run_is_named_after_its_moment(logic: dict[str, Any]) -> None:
    assert logic["names"] == [
        "run-2026-01-31T020000Z",
        "run-2026-02-03T040506.000789Z",
        "run-2026-01-30T000000Z",
        "run-2026-01-31T020000Z",
        "run-2026-01-30T230000Z",
    ]
    assert logic["filled"] == "a=2026-01-31 b=manuals-2026-01-31T020000Z manuals c={x: 1}"
    for name in logic["names"]:
        check_run_id(name)


def test_the_hour_that_comes_twice_has_two_runs(logic: dict[str, Any]) -> None:
    assert logic["twice"] == ["run-2026-10-25T003000Z", "run-2026-10-25T013000Z"]
    assert len(set(logic["autumn"])) == len(logic["autumn"]) == 25


def test_changes_are_exported_since_the_formats_own_last_export(logic: dict[str, Any]) -> None:
    to = ["--format", "csv", "--to", "s3://feeds/{run_id}"]
    assert logic["exports"] == [[*to, "--since", "r3"], [*to, "--since", "r1"], to]


def test_backfill_meets_the_schedule_also_when_clocks_change(logic: dict[str, Any]) -> None:
    assert logic["moments"] == [
        "2026-03-28T02:00:00+01:00",
        "2026-03-29T03:00:00+02:00",
        "2026-03-30T02:00:00+02:00",
    ]
    assert logic["midnights"] == ["2026-03-28T00:00:00+00:00", "2026-03-29T00:00:00+00:00"]


def test_every_setting_is_documented(logic: dict[str, Any]) -> None:
    text = (DAGS.parent / "docs" / "airflow.md").read_text(encoding="utf-8")
    rows = text[text.index("| key |") :].partition("\n\n")[0].splitlines()[2:]
    documented = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(documented) == sorted(logic["keys"])


def test_faults_of_settings_are_listed_together(logic: dict[str, Any]) -> None:
    assert logic["faults"] == (
        "Variable 'lakerank': config: missing: the config of the lake, a path; exports: expected an array; keep_runs: "
        "expected a whole number; nonsense: no such setting; timeout_minutes: scores: no such task; see docs/airflow.md"
    )
    assert "lakes.2026: a name has 1 to 64 of" in logic["lakes"]
    assert "lakes.a.keep_runs: expected a whole number; lakes.b: expected an object; see" in logic["lakes"]
    assert "config" not in logic["lakes"]
    assert logic["loads"].count("exports: ") == 4
    assert (
        "into postgres goes csv, not parquet; exports: load: into postgres takes strings for conn_id, table"
        in (logic["loads"])
    )
    assert "expected an object of settings" in logic["not an object"]
    assert "lakes: expected names" in logic["no lake"]


def test_a_file_that_cannot_be_read_is_no_file_of_defaults(logic: dict[str, Any]) -> None:
    missing, broken, empty = logic["unreadable"]
    assert "other.yaml: cannot be read: [Errno 2]" in missing
    assert "other.yaml: cannot be read: while parsing" in broken
    assert "other.yaml: expected an object of settings" in empty


def test_last_line_is_found_or_missing(logic: dict[str, Any]) -> None:
    assert logic["line"] == {"b": 2}
    assert logic["no line"] is None
    assert logic["unread"] is None


def test_only_what_would_fail_again_is_final(logic: dict[str, Any]) -> None:
    audit, config, storage, anyway = logic["final"]
    assert "reject rate" in audit
    assert "no such setting" in config
    assert storage is None
    assert anyway is None
