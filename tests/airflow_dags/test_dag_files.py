"""The DAG files as Airflow's parser sees them: what they import, how long they take, what the DAGs promise."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

import pytest

DAGS = Path(__file__).parents[2] / "airflow_dags"
FILES = sorted(DAGS.rglob("*.py"))

DESCRIBE = """
import time
import airflow.sdk
from airflow.providers.apache.spark.operators import spark_submit   # the parser imports both once for all files
from airflow.sdk import DAG
from airflow.serialization.serialized_objects import DagSerialization
import importlib
result = {"seconds": {}}
for name in ("rerank_nightly", "rerank_backfill", "rerank_clean"):
    started = time.perf_counter()
    module = importlib.import_module(name)
    result["seconds"][name] = time.perf_counter() - started
    (dag,) = [value for value in vars(module).values() if isinstance(value, DAG)]
    DagSerialization.to_dict(dag)
    result[name] = {
        "doc": dag.doc_md, "active": dag.max_active_runs, "schedule": type(dag.timetable).__name__,
        "params": sorted(dag.params),
        "tasks": {
            task.task_id: {
                "downstream": sorted(task.downstream_task_ids), "pool": task.pool, "retries": task.retries,
                "backoff": bool(task.retry_exponential_backoff), "timeout": bool(task.execution_timeout),
                "alerts": bool(task.on_failure_callback), "outlets": [asset.name for asset in task.outlets or []],
                "connection": getattr(task, "_conn_id", None) or getattr(task, "partial_kwargs", {}).get("conn_id"),
                "links": [link.name for link in task.operator_extra_links],
            } for task in dag.tasks
        },
    }
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


@pytest.mark.parametrize("name", ["rerank_nightly", "rerank_backfill", "rerank_clean"])
def test_each_dag_explains_itself_and_runs_once_at_a_time(dags: dict[str, Any], name: str) -> None:
    assert dags[name]["doc"].startswith("### ")
    assert dags[name]["active"] == 1


def test_nightly_is_one_chain_of_jobs(dags: dict[str, Any]) -> None:
    downstream = {name: task["downstream"] for name, task in dags["rerank_nightly"]["tasks"].items()}
    assert downstream == {
        "plan": ["score"],
        "score": ["audit_and_publish"],
        "audit_and_publish": ["evaluate"],
        "evaluate": ["choose_exports"],
        "choose_exports": ["export"],
        "export": [],
    }


def test_only_scoring_holds_gpus(dags: dict[str, Any]) -> None:
    jobs = {name: task for name, task in dags["rerank_nightly"]["tasks"].items() if task["connection"]}
    buffered = {name: (task["connection"], task["pool"]) for name, task in jobs.items()}
    assert buffered.pop("score") == ("lakerank_gpu", "lakerank_gpu")
    assert set(buffered) == {"plan", "audit_and_publish", "evaluate", "export"}
    assert set(buffered.values()) == {("lakerank_cpu", "default_pool")}


def test_every_job_is_tried_again_bounded_in_time_and_reported(dags: dict[str, Any]) -> None:
    jobs = [
        task for dag in ("rerank_nightly", "rerank_clean") for task in dags[dag]["tasks"].values() if task["connection"]
    ]
    assert len(jobs) == 6
    for task in jobs:
        assert task["retries"] == 3
        assert task["backoff"]
        assert task["timeout"]
        assert task["alerts"]
        assert "report.html" in task["links"]


def test_assets_come_in_and_go_out(dags: dict[str, Any]) -> None:
    assert dags["rerank_nightly"]["schedule"] == "AssetOrTimeSchedule"
    outlets = {name: task["outlets"] for name, task in dags["rerank_nightly"]["tasks"].items() if task["outlets"]}
    assert outlets == {"audit_and_publish": ["lakerank_published"], "export": ["lakerank_exported"]}


LOGIC = """
from datetime import datetime, UTC
from types import SimpleNamespace as Record
from lake_tasks.exports import export_arguments
from lake_tasks.run_names import filled, moment_of, moments, run_name
from lake_tasks.settings import Settings
from lake_tasks.summaries import final_fault, last_json_line, read_summary

dated = Record(logical_date=datetime(2026, 1, 31, 2, tzinfo=UTC), run_after=datetime(2026, 2, 3, tzinfo=UTC))
landed = Record(logical_date=None, run_after=datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=UTC))

def name(run, date=None, zone="UTC"):
    return run_name(moment_of(run, {"date": date}, zone))

def fault(given):
    try:
        return str(Settings.of(given))
    except ValueError as error:
        return str(error)

past = [{"format": "csv", "run_id": "r1"}, {"format": "trec-run", "run_id": "r2"}, {"format": "csv", "run_id": "r3"}]
requested = {"format": "csv", "to": "s3://feeds/{run_id}", "since": "last", "depth": None}

result = {
    "keys": list(Settings.__dataclass_fields__),
    "exports": [export_arguments(requested, run, past) for run in ("r4", "r3", "r1")],
    "names": [name(dated), name(landed), name(dated, "2026-01-30"), name(dated, zone="Europe/Berlin"),
              name(dated, "2026-01-31T00:00:00+01:00", "Europe/Berlin")],
    "filled": filled("a={date} b={run_id} c={x: 1}", moment_of(dated, {}, "UTC")),
    "moments": moments("0 2 * * *", "Europe/Berlin", "2026-03-28", "2026-03-30"),
    "midnights": moments(None, "UTC", "2026-03-28", "2026-03-29"),
    "faults": fault({"nonsense": 1, "exports": {}, "keep_runs": 3}),
    "not an object": fault([1]),
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
        "2026-01-31T020000",
        "2026-02-03T040506",
        "2026-01-30",
        "2026-01-31T030000",
        "2026-01-31",
    ]
    assert logic["filled"] == "a=2026-01-31 b=2026-01-31T020000 c={x: 1}"


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


def test_faults_of_the_variable_are_listed_together(logic: dict[str, Any]) -> None:
    assert "exports: expected a JSON array; nonsense: no such setting; see docs/airflow.md" in logic["faults"]
    assert "expected a JSON object" in logic["not an object"]


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
