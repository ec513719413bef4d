"""Other tools read ranked/ as docs/reading.md says, also where a run id looks like a date."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakerank.lake.publication import settle
from lakerank.lake.runs import RunPaths
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import parquet_bytes

PAGE = Path(__file__).parents[2] / "docs" / "reading.md"


@pytest.fixture(params=["2026-01-31", "42", "nightly"])
def output(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Two published runs; the later one has the id."""
    for run_id in ("2026-01-30", request.param):
        paths = RunPaths(str(tmp_path), run_id)
        Path(paths.ranked).mkdir(parents=True)
        pq.write_table(pa.table({"query_id": [run_id]}), Path(paths.ranked) / "part-00000.parquet")
        manifest = {"published_at": "2026-01-01", "ranked_files": [{"file": "part-00000.parquet", "rows": 1}]}
        settle(Storage(), paths, manifest)
    return tmp_path


def test_polars_finds_the_published_run(output: Path) -> None:
    run_id = pl.read_ndjson(output / "current.json")["run_id"].item()
    rows = pl.scan_parquet(output / "ranked" / "**" / "*.parquet", hive_schema={"run_id": pl.String})
    assert rows.filter(pl.col("run_id") == run_id).collect()["query_id"].to_list() == [run_id]


def test_arrow_finds_the_published_run(output: Path) -> None:
    run_id = pl.read_ndjson(output / "current.json")["run_id"].item()
    assert pq.read_table(output / f"ranked/run_id={run_id}", partitioning=None)["query_id"].to_pylist() == [run_id]


def _statements(language: str) -> list[str]:
    (block,) = re.findall(rf"^```sql {language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [statement for statement in block.split(";") if statement.strip()]


@pytest.mark.parametrize("run_id", ["2026-01-31", "42"])
def test_duckdb_runs_the_pages_sql(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_id: str) -> None:
    expected = _lists(tmp_path, run_id)
    monkeypatch.chdir(tmp_path)
    connection = duckdb.connect()
    *views, query = _statements("duckdb")
    for view in views:
        connection.execute(view)
    assert connection.execute(query).fetchall() == expected


@pytest.mark.nightly
@pytest.mark.spark
@pytest.mark.parametrize("run_id", ["2026-01-31", "42"])
def test_spark_runs_the_pages_sql(spark: Any, tmp_path: Path, run_id: str) -> None:
    expected = _lists(tmp_path, run_id)
    session = spark.newSession()
    *views, query = _statements("spark")
    for view in views:
        session.sql(view.replace("'out/", f"'{tmp_path}/out/"))
    assert [tuple(row) for row in session.sql(query).collect()] == expected


def _lists(folder: Path, run_id: str) -> list[tuple[str, str, int, float]]:
    """Two published runs, the later one with the id; what the page's queries give of it."""
    for published, relevance in (("2026-01-30", 0.25), (run_id, 0.5)):
        paths = RunPaths(str(folder / "out"), published)
        columns = {"query_id": ["q2", "q1", "q1"], "doc_id": ["a", "b", "c"], "rank": [1, 11, 2]}
        content = parquet_bytes(pa.table({**columns, "relevance": [relevance] * 3}), 2)
        Storage().replace(join(paths.ranked, "part-00000.parquet"), content)
        manifest = {"published_at": "2026-01-01", "ranked_files": [{"file": "part-00000.parquet", "rows": 3}]}
        settle(Storage(), paths, manifest)
    return [("q1", "c", 2, 0.5), ("q2", "a", 1, 0.5)]
