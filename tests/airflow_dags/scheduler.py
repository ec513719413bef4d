"""The DAGs under a real scheduler, with what goes wrong at night: `make test-airflow`.

One `airflow standalone` (scheduler, DAG processor, triggerer, API server; LocalExecutor on SQLite) serves every
scenario, in the order in which they stand here: a night in which scoring is killed, one whose audit fails, one whose
evaluation fails, two dates later on.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psutil
import pytest
from running import running, wait_until

from .conftest import AIRFLOW, Airflow, Lake, make_lake, variable_for

pytestmark = [pytest.mark.spark, pytest.mark.nightly]

PATIENCE_S = 600.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Webhook(ThreadingHTTPServer):
    """Keeps the alerts that it is sent."""

    def __init__(self) -> None:
        self.alerts: list[dict[str, Any]] = []
        super().__init__(("127.0.0.1", 0), _Receive)


class _Receive(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        self.server.alerts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Scheduler:
    """A running Airflow, spoken to by its REST API."""

    def __init__(self, airflow: Airflow, port: int, lake: Lake, webhook: Webhook) -> None:
        self.airflow = airflow
        self.url = f"http://127.0.0.1:{port}"
        self.lake = lake
        self.webhook = webhook
        self.token = ""

    def api(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method, headers=headers)  # noqa: S310
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return json.loads(answer.read() or b"null")

    def ready(self) -> bool:
        """Whether all four parts are up and have parsed the DAG files."""
        try:
            health = self.api("GET", "/api/v2/monitor/health")
            if any(part["status"] != "healthy" for part in health.values()):
                return False
            self.token = self.token or self.api("GET", "/auth/token")["access_token"]
            return len(self.api("GET", "/api/v2/dags")["dags"]) == 3
        except OSError:
            return False

    def trigger(self, dag: str, **conf: Any) -> str:
        body = {"logical_date": None, "conf": conf}
        return str(self.api("POST", f"/api/v2/dags/{dag}/dagRuns", body)["dag_run_id"])

    def runs(self, dag: str) -> list[dict[str, Any]]:
        return list(self.api("GET", f"/api/v2/dags/{dag}/dagRuns?order_by=id")["dag_runs"])

    def tasks(self, dag: str, run: str) -> dict[str, dict[str, Any]]:
        path = f"/api/v2/dags/{dag}/dagRuns/{urllib.request.quote(run)}/taskInstances"
        return {task["task_id"]: task for task in self.api("GET", path)["task_instances"]}

    def finished(self, dag: str, run: str) -> str:
        """The state a DAG run ends in."""

        def state() -> str | None:
            (result,) = [r["state"] for r in self.runs(dag) if r["dag_run_id"] == run]
            return result if result in ("success", "failed") else None

        return str(wait_until(f"{dag} {run}", state, PATIENCE_S))

    def summary(self, dag: str, run: str, task: str) -> dict[str, Any]:
        """A task's XCom: the job's last line."""
        path = f"/api/v2/dags/{dag}/dagRuns/{urllib.request.quote(run)}/taskInstances/{task}/xcomEntries/return_value"
        value = self.api("GET", path)["value"]
        return dict(json.loads(value) if isinstance(value, str) else value)


@pytest.fixture(scope="module")
def webhook() -> Iterator[Webhook]:
    with running(Webhook()) as server:
        yield server


@pytest.fixture(scope="module")
def scheduler(
    airflow_environment: None, webhook: Webhook, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scheduler]:
    folder = tmp_path_factory.mktemp("scheduler")
    lake = make_lake(folder / "lake", queries=4)
    port = free_port()
    airflow = Airflow(
        folder,
        variable_for(
            lake,
            schedule=None,
            clean_schedule=None,
            exports=[{"format": "trec-run", "to": str(lake.folder / "export-{run_id}")}],
            retries=1,
        ),
        AIRFLOW__API__HOST="127.0.0.1",
        AIRFLOW__API__PORT=str(port),
        AIRFLOW__API__BASE_URL=f"http://127.0.0.1:{port}",
        AIRFLOW__API__WORKERS="1",
        AIRFLOW__CORE__EXECUTION_API_SERVER_URL=f"http://127.0.0.1:{port}/execution/",
        AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS="True",
        AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION="False",
        AIRFLOW__CORE__PARALLELISM="4",
        AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT=str(free_port()),
        AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT=str(free_port()),
        AIRFLOW_CONN_LAKERANK_ALERTS=json.dumps(
            {"conn_type": "http", "extra": {"url": f"http://127.0.0.1:{webhook.server_port}/"}}
        ),
    )
    with (folder / "standalone.log").open("w") as log:
        process = subprocess.Popen(
            [AIRFLOW / "airflow", "standalone"],
            env=airflow.environment,
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    running = Scheduler(airflow, port, lake, webhook)
    try:
        wait_until("Airflow to be ready", lambda: process.poll() is not None or running.ready(), 300)
        assert process.poll() is None, (folder / "standalone.log").read_text()
        running.api("POST", "/api/v2/pools", {"name": "lakerank_gpu", "slots": 1})
        yield running
    finally:
        if process.poll() is None:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            process.send_signal(signal.SIGINT)  # as from a keyboard: `standalone` then stops its parts
            for member in psutil.wait_procs(family, timeout=10)[1]:
                member.kill()
        process.wait()


def kill_scoring(lake: Lake) -> set[str]:
    """SIGKILL the scoring job, all its workers and the Airflow task that waits for it, once some units are done."""

    def half_way() -> list[psutil.Process]:
        if len(lake.units()) < 2:
            return []
        words = ("--stage", "score", f"lake.output={lake.output}")
        return [p for p in psutil.process_iter(["cmdline"]) if set(words) <= set(p.info["cmdline"] or [])]

    submitted = wait_until("two units to be scored", half_way, PATIENCE_S)
    doomed = {submitted[0].parent(), *submitted}
    for process in submitted:
        doomed |= set(process.children(recursive=True))
    for process in doomed:
        if process is not None and process.is_running():
            os.kill(process.pid, signal.SIGKILL)
    return set(lake.units())


def test_candidates_that_land_start_a_run_and_a_killed_score_task_goes_on(scheduler: Scheduler) -> None:
    lake = scheduler.lake
    (asset,) = scheduler.api("GET", "/api/v2/assets?name_pattern=lakerank_candidates")["assets"]
    scheduler.api("POST", "/api/v2/assets/events", {"asset_id": asset["id"], "extra": {}})
    (run,) = wait_until("the Asset's run", lambda: scheduler.runs("rerank_nightly"), PATIENCE_S)
    assert run["run_type"] == "asset_triggered"
    done = kill_scoring(lake)
    written = lake.units()
    assert scheduler.finished("rerank_nightly", run["dag_run_id"]) == "success"

    tasks = scheduler.tasks("rerank_nightly", run["dag_run_id"])
    assert {name: task["state"] for name, task in tasks.items()} == dict.fromkeys(tasks, "success") | {
        "load": "skipped"
    }
    assert tasks["score"]["try_number"] == 2
    assert tasks["score"]["pool"] == "lakerank_gpu"
    summary = scheduler.summary("rerank_nightly", run["dag_run_id"], "score")
    assert 2 <= len(done) <= summary["found"] < summary["units"], "it was not killed half-way"
    assert {name: when for name, when in lake.units().items() if name in written} == written, "a unit was scored again"
    current = lake.current()["run_id"]
    assert lake.manifest(current)["counts"]["scored"] == lake.pairs
    assert (lake.folder / f"export-{current}" / "_manifest.json").exists()

    (published,) = scheduler.api("GET", "/api/v2/assets?name_pattern=lakerank_published")["assets"]
    events = scheduler.api("GET", f"/api/v2/assets/events?asset_id={published['id']}")["asset_events"]
    assert [event["extra"]["run_id"] for event in events] == [current]
    links = scheduler.api(
        "GET",
        f"/api/v2/dags/rerank_nightly/dagRuns/{urllib.request.quote(run['dag_run_id'])}/taskInstances/evaluate/links",
    )
    assert links["extra_links"]["report.html"].endswith(f"/runs/{current}/report.html")


def test_failed_audit_is_red_at_the_audit_and_the_old_run_stays_current(scheduler: Scheduler) -> None:
    before = scheduler.lake.current()
    settings = [*scheduler.lake.settings, "audit.max_reject_rate=0"]
    run = scheduler.trigger("rerank_nightly", date="2026-02-01", set=settings)
    assert scheduler.finished("rerank_nightly", run) == "failed"
    tasks = scheduler.tasks("rerank_nightly", run)
    assert {name: task["state"] for name, task in tasks.items()} == {
        "check": "success",
        "plan": "success",
        "score": "success",
        "audit_and_publish": "failed",
        "evaluate": "upstream_failed",
        "choose_exports": "upstream_failed",
        "export": "upstream_failed",
        "load": "upstream_failed",
    }
    assert tasks["audit_and_publish"]["try_number"] == 1, "what fails again is not tried again"
    assert scheduler.lake.current() == before
    (alert,) = scheduler.webhook.alerts
    assert alert["task_id"] == "audit_and_publish"
    assert alert["failed_audits"] == ["reject rate"]
    assert alert["summary"]["run_id"] == "run-2026-02-01T000000Z"
    assert "reject rate" in alert["text"]


def test_failed_evaluation_stops_no_export_of_the_published_run(scheduler: Scheduler) -> None:
    settings = [*scheduler.lake.settings, "lake.qrels=/no/such/judgements.parquet"]
    run = scheduler.trigger("rerank_nightly", date="2026-02-02", set=settings)
    assert scheduler.finished("rerank_nightly", run) == "failed"
    states = {name: task["state"] for name, task in scheduler.tasks("rerank_nightly", run).items()}
    assert states["evaluate"] == "failed"
    assert [states[name] for name in ("audit_and_publish", "choose_exports", "export")] == ["success"] * 3
    current = scheduler.lake.current()["run_id"]
    assert current == "run-2026-02-02T000000Z"
    assert (scheduler.lake.folder / f"export-{current}" / "_manifest.json").exists()


def test_dates_are_backfilled_in_their_order(scheduler: Scheduler) -> None:
    scored = scheduler.lake.units()
    earlier = {run["dag_run_id"] for run in scheduler.runs("rerank_nightly")}
    run = scheduler.trigger("rerank_backfill", first="2026-01-30", last="2026-01-31")
    assert scheduler.finished("rerank_backfill", run) == "success"
    first, second = [r for r in scheduler.runs("rerank_nightly") if r["dag_run_id"] not in earlier]
    assert [first["state"], second["state"]] == ["success", "success"]
    assert [first["conf"]["date"], second["conf"]["date"]] == ["2026-01-30T00:00:00+00:00", "2026-01-31T00:00:00+00:00"]
    assert first["end_date"] <= second["start_date"], "one at a time"
    names = [f"run-{date}T000000Z" for date in ("2026-01-30", "2026-01-31")]
    published = [scheduler.lake.manifest(name)["published_at"] for name in names]
    assert published == sorted(published)
    assert scheduler.lake.current()["run_id"] == names[-1]
    assert scheduler.lake.units() == scored, "what the lake had scored was scored again"
