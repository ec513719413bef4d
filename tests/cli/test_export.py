"""jobs/export.py before Spark starts: what it finds wrong, it says at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner
from deltalake import DeltaTable

from lakerank.cli.export import export
from lakerank.lake.publication import publish
from lakerank.lake.runs import RunPaths, write_manifest
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import parquet_bytes
from lakerank.schemas import RANKED
from table_formats import IcebergLake, iceberg

__all__ = ["iceberg"]  # a fixture

CONFIG = Path(__file__).parents[2] / "conf" / "demo.yaml"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An output folder with a published run of no lists."""
    paths, moment = RunPaths(str(tmp_path / "out"), "r"), "2026-01-01T00:00:00+00:00"
    write_manifest(Storage(), paths, {"published_at": moment, "scorer": "f00d", "ranked_files": []})
    publish(Storage(), paths)
    Storage().replace(paths.config, b"lake: {documents: d, queries: q, candidates: c, output: o}")
    return tmp_path / "out"


def run(output: Path, to: str) -> Any:
    settings = ["--config", str(CONFIG), "--set", f"lake.output={output}"]
    return CliRunner().invoke(export, [*settings, "--run-id", "r", "--format", "trec-run", "--to", to])


def test_a_place_that_cannot_be_written_is_named_before_spark_starts(output: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    place = str(tmp_path / "file" / "below")
    done = run(output, place)
    assert done.exit_code == 1
    assert place in json.loads(done.stdout.splitlines()[-1])["message"]
    assert "starting Spark" not in done.stderr


def test_a_run_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = run(tmp_path, str(tmp_path / "export"))
    assert done.exit_code == 1
    message = json.loads(done.stdout.splitlines()[-1])["message"]
    assert message == f"no run 'r' in {tmp_path}; published: none"


def test_a_run_whose_audit_failed_is_not_exported(output: Path, tmp_path: Path) -> None:
    Path(RunPaths(str(output), "r").manifest).unlink()
    Storage().replace(join(RunPaths(str(output), "r").unpublished, "part-00000.parquet"), b"x")
    done = run(output, str(tmp_path / "export"))
    assert done.exit_code == 1
    assert "run 'r' is not published; if its audit failed" in json.loads(done.stdout.splitlines()[-1])["message"]


@pytest.mark.parametrize("form", ["iceberg", "delta"])
def test_a_table_gets_the_run_down_to_a_rank_and_an_older_run_again(
    form: str, output: Path, tmp_path: Path, iceberg: IcebergLake
) -> None:
    address = {"iceberg": "iceberg://lake/db.ranked", "delta": f"delta+{tmp_path / 'table'}"}[form]
    rows = {field.name: pa.nulls(2, field.type) for field in RANKED}
    for run_id in ("r", "later"):
        paths, ids = (
            RunPaths(str(output), run_id),
            {"query_id": pa.array(["q", "q"]), "doc_id": pa.array([run_id, "d"])},
        )
        table = pa.table({**rows, **ids, "rank": pa.array([1, 2], pa.int32())})
        Storage().replace(join(paths.ranked, "part-00000.parquet"), parquet_bytes(table, 10))
        Path(paths.manifest).unlink(missing_ok=True)
        manifest = {"run_id": run_id, "published_at": "2026-01-01T00:00:00+00:00", "scorer": "f00d"}
        write_manifest(Storage(), paths, {**manifest, "ranked_files": [{"file": "part-00000.parquet", "rows": 2}]})
        Storage().replace(paths.config, b"lake: {documents: d, queries: q, candidates: c, output: o}")

    def exported(run_id: str, *more: str) -> Any:
        settings = ["--config", str(CONFIG), "--set", f"lake.output={output}", "--to", address]
        done = CliRunner().invoke(export, [*settings, "--run-id", run_id, "--format", form, *more])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout.splitlines()[-1])["snapshot"]

    def documents() -> list[str]:
        if form == "iceberg":
            return sorted(iceberg.table("ranked").scan().to_arrow()["doc_id"].to_pylist())
        return sorted(DeltaTable(tmp_path / "table").to_pyarrow_table()["doc_id"].to_pylist())

    first = exported("r")
    assert documents() == ["d", "r"]
    assert exported("r") == first
    later = exported("later", "--depth", "1")
    assert documents() == ["later"]
    assert len({first, later, exported("r")}) == 3
    assert documents() == ["d", "r"]


@pytest.mark.parametrize(
    ("to", "since", "fault"), [("s3://x", None, "--to s3://x: expected"), ("delta+x", "r", "--since")]
)
def test_a_table_is_named_by_its_address_and_replaced_whole(output: Path, to: str, since: str, fault: str) -> None:
    more = ["--since", since] if since else []
    settings = ["--config", str(CONFIG), "--set", f"lake.output={output}", "--to", to]
    done = CliRunner().invoke(export, [*settings, "--format", "delta", *more])
    assert done.exit_code == 2
    assert fault in json.loads(done.stdout.splitlines()[-1])["message"]
