"""`airflow dags test` of the nightly DAG: every task green, a published, judged and loaded run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from postgresql import postgresql, why_no_server

from .conftest import Airflow, make_lake, variable_for

pytestmark = [pytest.mark.spark, pytest.mark.nightly]


@pytest.fixture
def database() -> Iterator[Path | None]:
    """The folder of a PostgreSQL server's socket; None where there is no server."""
    with ExitStack() as stack:
        yield None if why_no_server() else stack.enter_context(postgresql())


def test_nightly_of_the_stored_variable_publishes_the_date_it_is_given(
    airflow_environment: None, tmp_path: Path, database: Path | None
) -> None:
    lake = make_lake(tmp_path / "lake", queries=2)
    server = {"conn_type": "postgres", "host": str(database), "login": "lakerank", "schema": "postgres"}
    airflow = Airflow(tmp_path, AIRFLOW_CONN_SHOP=json.dumps(server))
    assert airflow.run("airflow", "db", "migrate").returncode == 0
    command = ("airflow", "dags", "test", "rerank_nightly", "2026-01-31")
    refused = airflow.run(*command)
    assert refused.returncode != 0
    assert "no settings: there is no Variable 'lakerank'" in refused.stdout + refused.stderr

    load = {"into": "postgres", "conn_id": "shop", "table": "ranked"} if database else None
    exports = [{"format": "csv", "to": str(lake.folder / "export"), "load": load}]
    variable = variable_for(lake, exports=exports, min_rows={"candidates": lake.pairs})
    assert airflow.run("airflow", "variables", "set", "lakerank", json.dumps(variable)).returncode == 0
    done = airflow.run(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    run = "run-2026-01-31T000000Z"
    assert lake.current()["run_id"] == run
    assert lake.manifest(run)["counts"]["scored"] == lake.pairs
    assert (lake.output / "runs" / run / "report.html").exists()
    assert (lake.folder / "export" / "_manifest.json").exists()
    green = re.findall(r"end task task_id=(\w+)", done.stdout + done.stderr)
    first = ["check", "plan", "score", "audit_and_publish"]
    assert green[:4] == first
    assert sorted(green[4:]) == ["choose_exports", "evaluate", "export", "load"]
    if database:
        with psycopg.connect(host=str(database), user="lakerank", dbname="postgres") as connection:
            assert connection.execute("SELECT count(*) FROM ranked").fetchone() == (lake.pairs,)
            assert connection.execute("SELECT run_id FROM ranked_run").fetchone() == (run,)
