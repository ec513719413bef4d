"""Airflow in an environment of its own, driven from outside by its command line; and a lake small enough for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[2]
DAGS = ROOT / "airflow_dags"
AIRFLOW = ROOT / ".venv-airflow" / "bin"
DEMO_LAKE = ROOT / "lib" / "lakerank" / "ingest" / "demo_lake"


@dataclass(frozen=True)
class Lake:
    """A few queries of the bundled lake with all their candidates, and one candidate that is not in it."""

    folder: Path
    queries: int
    pairs: int

    @property
    def output(self) -> Path:
        return self.folder / "out"

    @property
    def settings(self) -> list[str]:
        """--set values: the small lake, in units small enough to lose one."""
        tables = [f"lake.{name}={DEMO_LAKE / name}.parquet" for name in ("documents", "queries", "qrels")]
        return [
            *tables,
            f"lake.candidates={self.folder / 'candidates.parquet'}",
            f"lake.output={self.output}",
            "scoring.unit_tokens=700",
            "spark.partitions=2",
        ]

    def current(self) -> dict[str, Any]:
        return dict(json.loads((self.output / "current.json").read_text()))

    def manifest(self, run_id: str) -> dict[str, Any]:
        return dict(json.loads((self.output / "runs" / run_id / "manifest.json").read_text()))

    def units(self) -> dict[str, int]:
        """Files of scores, and when each was written (ns)."""
        return {path.name: path.stat().st_mtime_ns for path in (self.output / "scores").glob("*/*.parquet")}


def make_lake(folder: Path, queries: int) -> Lake:
    folder.mkdir()
    candidates = pq.read_table(DEMO_LAKE / "candidates.parquet", columns=["query_id", "doc_id", "first_stage_rank"])
    ids = candidates["query_id"].unique()
    kept = candidates.filter(pc.is_in(candidates["query_id"], ids[:: len(ids) // queries][:queries]))
    stray = pa.table({"query_id": [ids[0]], "doc_id": ["not in the lake"], "first_stage_rank": [99]})
    pq.write_table(pa.concat_tables([kept, stray.cast(kept.schema)]), folder / "candidates.parquet")
    return Lake(folder, queries, len(kept))


class Airflow:
    """An AIRFLOW_HOME of its own. Connections are in the environment, and the Variable, if it is given one."""

    def __init__(self, home: Path, variable: Mapping[str, Any] | None = None, **environment: str) -> None:
        self.home = home
        master = {"conn_type": "spark", "host": "local[1]"}
        path = [str(Path(sys.executable).parent), str(AIRFLOW), os.environ["PATH"]]  # spark-submit is pyspark's own
        own = ("AIRFLOW", "LAKERANK", "PYSPARK", "SPARK", "PYTEST")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(own)}
        if variable is not None:
            environment["AIRFLOW_VAR_LAKERANK"] = json.dumps(variable)
        self.environment = inherited | {
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW_CONN_LAKERANK_CPU": json.dumps(master),
            "AIRFLOW_CONN_LAKERANK_GPU": json.dumps(master),
            "JAVA_HOME": os.environ.get("JAVA_HOME") or str(ROOT / ".venv" / "java"),
            "PATH": os.pathsep.join(path),
            "PYSPARK_PYTHON": sys.executable,
            "PYSPARK_DRIVER_PYTHON": sys.executable,
            **environment,
        }

    def run(self, *command: str | Path, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """A program of Airflow's environment: its standard output and error, and its exit status."""
        program, *arguments = command
        return subprocess.run(
            [AIRFLOW / program, *arguments],
            env=self.environment,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def python(self, code: str) -> Any:
        """What `code` leaves in `result`, run in Airflow's environment beside the DAG files."""
        script = f"import json, sys\nsys.path.insert(0, {str(DAGS)!r})\n{code}\nprint(json.dumps(result))"
        done = self.run("python", "-c", script)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


def variable_for(lake: Lake, **more: Any) -> dict[str, Any]:
    """The Variable `lakerank` for a small lake on this machine."""
    spark = {"conf": {"spark.driver.memory": "1g", "spark.ui.enabled": "false"}}
    given = {
        "config": "conf/demo.yaml",
        "set": lake.settings,
        "summaries": str(lake.folder / "summaries"),
        "cpu": spark,
        "gpu": spark,
    }
    return given | {"cpu": spark, "gpu": spark, "retry_minutes": 0.05, "poll_seconds": 2} | more


@pytest.fixture(scope="session")
def airflow_environment() -> None:
    if not (AIRFLOW / "airflow").exists():
        pytest.skip("no .venv-airflow: `bin/setup airflow` makes it")


@pytest.fixture(scope="session")
def small_airflow(airflow_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Airflow:
    """Airflow without a database, for what needs none: with the file of two lakes in docs/airflow.md."""
    home = tmp_path_factory.mktemp("airflow")
    page = (ROOT / "docs" / "airflow.md").read_text(encoding="utf-8")
    (home / "lakes.yaml").write_text(page.partition("```yml\n")[2].partition("```")[0])
    return Airflow(home, LAKERANK_LAKES=str(home / "lakes.yaml"))
