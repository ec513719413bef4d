"""Other tools read ranked/ as docs/storage.md says, also where a run id looks like a date."""

from __future__ import annotations

from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakerank.lake.publication import settle
from lakerank.lake.runs import RunPaths
from lakerank.lake.storage import Storage


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


def test_duckdb_finds_the_published_run(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(output)
    found = duckdb.sql(
        "select query_id, run_id from read_parquet('ranked/*/*.parquet', hive_partitioning=true, "
        "hive_types={'run_id': varchar}) where run_id = (select run_id from 'current.json')"
    ).fetchall()
    assert found == [(pl.read_ndjson("current.json")["run_id"].item(),) * 2]


def test_arrow_finds_the_published_run(output: Path) -> None:
    run_id = pl.read_ndjson(output / "current.json")["run_id"].item()
    assert pq.read_table(output / f"ranked/run_id={run_id}", partitioning=None)["query_id"].to_pylist() == [run_id]
