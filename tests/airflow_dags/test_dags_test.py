"""`airflow dags test` of the nightly DAG: every task green, a published and judged run on disk."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from .conftest import Airflow, make_lake, variable_for


@pytest.mark.spark
@pytest.mark.nightly
def test_nightly_publishes_the_date_it_is_given(airflow_environment: None, tmp_path: Path) -> None:
    lake = make_lake(tmp_path / "lake", queries=2)
    airflow = Airflow(tmp_path, variable_for(lake, exports=exports(lake)))
    assert airflow.run("airflow", "db", "migrate").returncode == 0
    done = airflow.run("airflow", "dags", "test", "rerank_nightly", "2026-01-31")
    assert done.returncode == 0, done.stdout + done.stderr
    assert lake.current()["run_id"] == "2026-01-31"
    assert lake.manifest("2026-01-31")["counts"]["scored"] == lake.pairs
    assert (lake.output / "runs" / "2026-01-31" / "report.html").exists()
    assert (lake.folder / "export" / "_manifest.json").exists()
    green = re.findall(r"end task task_id=(\w+)", done.stdout + done.stderr)
    assert green == ["plan", "score", "audit_and_publish", "evaluate", "choose_exports", "export"]


def exports(lake: Any) -> list[dict[str, Any]]:
    return [{"format": "trec-run", "to": str(lake.folder / "export")}]
