"""Published lists in the libraries that people read them with, and what is said where they cannot be read."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lakerank import read_ranked
from lakerank.errors import ConfigError, DependencyError, ExportError, RunNotFoundError, StorageError
from lakerank.lake.publication import settle
from lakerank.lake.runs import RunPaths
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import parquet_bytes
from lakerank.schemas import RANKED

#: Whole numbers that no double holds, one of them missing.
GROUPS = [2**53 + 1, None, 7, 2**53 + 3]


def publish(
    output: str,
    run_id: str,
    logit: float,
    published: bool = True,
    storage: Storage = Storage(),  # noqa: B008
) -> pa.Table:
    """A run of two files, whose query ids are numbers without a sign, with groups."""
    row = {"rank": 1, "logit": logit, "relevance": 0.5, "label": 1, "first_stage_rank": None, "truncated": False}
    rows = [{"query_id": str(10 + at), "doc_id": "d", **row, "group_id": group} for at, group in enumerate(GROUPS)]
    table = pa.Table.from_pylist(rows, schema=pa.schema([*RANKED, ("group_id", pa.int64())]))
    table = table.set_column(0, pa.field("query_id", pa.uint64(), nullable=False), table["query_id"].cast(pa.uint64()))
    paths, names = RunPaths(output, run_id), ("part-00000.parquet", "part-00001.parquet")
    for number, name in enumerate(names):
        folder = paths.ranked if published else paths.unpublished
        storage.replace(join(folder, name), parquet_bytes(table.slice(3 * number, 3), 2))
    if published:
        files = [{"file": name, "rows": 1} for name in names]
        settle(storage, paths, {"published_at": "2026-01-01", "ranked_files": files})
    return table


@pytest.fixture
def output(tmp_path: Path) -> str:
    publish(str(tmp_path), "old", 1.0)
    publish(str(tmp_path), "new", 2.0)
    return str(tmp_path)


AS_ARROW: dict[str, Callable[[Any], pa.Table]] = {
    "arrow": lambda table: table,
    "pandas": lambda frame: pa.Table.from_pandas(frame, preserve_index=False),
    "polars": lambda frame: frame.to_arrow(),
    "duckdb": lambda relation: relation.to_arrow_table(),
}


@pytest.mark.parametrize("engine", ["arrow", "polars"])
def test_lists_in_an_object_store_are_read_by_its_settings(s3_storage: Storage, s3_folder: str, engine: Any) -> None:
    expected = publish(s3_folder, "r", 1.0, storage=s3_storage)
    settings = {name: getattr(s3_storage.options, name) for name in ("endpoint_url", "region")}
    assert AS_ARROW[engine](read_ranked(s3_folder, engine=engine, storage=settings)).to_pylist() == expected.to_pylist()
    (folder,) = {file.uri.rpartition("/")[0] for file in s3_storage.walk(join(s3_folder, "ranked"))}
    s3_storage.replace(join(folder, "part-00001.parquet"), b"PAR1 damaged PAR1")
    with pytest.raises(StorageError, match=r"s3://.*part-00001\.parquet"):
        read_ranked(s3_folder, engine=engine, storage=settings)


@pytest.mark.parametrize("engine", AS_ARROW)
def test_each_library_gets_the_same_rows(output: str, engine: Any) -> None:
    for run, logit in (("current", 2.0), ("old", 1.0)):
        table = AS_ARROW[engine](read_ranked(output, run, engine))
        assert table.to_pylist() == publish(output, "same", logit, published=False).to_pylist()
        assert {table.schema.field(name).type for name in ("query_id", "group_id")} == {pa.uint64(), pa.int64()}


@pytest.mark.spark
def test_spark_reads_the_same_rows_in_its_tasks(spark: Any, output: str) -> None:
    frame = read_ranked(output, engine="spark")
    assert frame.sparkSession.sparkContext.applicationId == spark.sparkContext.applicationId
    assert frame.toArrow().to_pylist() == publish(output, "same", 2.0, published=False).to_pylist()


@pytest.mark.parametrize("engine", ["polars", "duckdb", "pandas", "spark"])
def test_a_library_that_is_missing_is_named(output: str, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyspark" if engine == "spark" else engine, None)
    with pytest.raises(DependencyError, match=rf"needs (py)?{engine}: pip install (py)?{engine}"):
        read_ranked(output, engine=engine)


@pytest.mark.parametrize(
    ("run", "says"),
    [
        ("nightly", "no run 'nightly' in .*; published: new, old"),
        ("failed", "run 'failed' is not published; if its audit failed .*--publish-anyway"),
        ("planned", "run 'planned' in .* has no ranked lists yet"),
    ],
)
def test_a_run_that_cannot_be_read_is_named(output: str, run: str, says: str) -> None:
    publish(output, "failed", 1.0, published=False)
    for name in ("failed", "planned"):
        (Path(output) / "runs" / name).mkdir(parents=True)
    with pytest.raises((RunNotFoundError, ExportError), match=says) as error:
        read_ranked(output, run)
    assert "\n" not in str(error.value)


def test_an_output_without_a_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError, match=r"no run in .* yet"):
        read_ranked(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("content", [b"", b"{", b'{"run_id": 3}', b'{"run_id": "new", "checksum": "00000000"}'])
def test_a_damaged_pointer_is_an_error(output: str, content: bytes) -> None:
    (Path(output) / "current.json").write_bytes(content)
    with pytest.raises(StorageError, match=r"current\.json") as error:
        read_ranked(output)
    assert "\n" not in str(error.value)


def test_a_damaged_list_is_an_error(output: str) -> None:
    file = Path(output) / "ranked" / "run_id=new" / "part-00001.parquet"
    data = bytearray(file.read_bytes())
    data[10] ^= 1
    file.write_bytes(data)
    with pytest.raises(StorageError, match=r"part-00001\.parquet: damaged"):
        read_ranked(output)
    assert read_ranked(output, "old").num_rows == 4


def test_wrong_arguments_are_named(output: str) -> None:
    with pytest.raises(ConfigError, match="engine 'dask': expected arrow, "):
        read_ranked(output, engine="dask")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'endpoint'"):
        read_ranked(output, storage={"endpoint": "x"})


def test_a_run_that_ranks_nothing_has_its_columns(tmp_path: Path) -> None:
    paths = RunPaths(str(tmp_path), "empty")
    Storage().replace(join(paths.ranked, "part-00000.parquet"), parquet_bytes(RANKED.empty_table(), 2))
    manifest = {"published_at": "2026-01-01", "ranked_files": [{"file": "part-00000.parquet", "rows": 0}]}
    settle(Storage(), paths, manifest)
    table = read_ranked(str(tmp_path))
    assert (table.schema, table.num_rows) == (RANKED, 0)
