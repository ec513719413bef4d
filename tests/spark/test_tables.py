"""Tables of a Spark session's catalogs: the rows that Spark reads, read by reference from their files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakerank.errors import ConfigError, DependencyError, StorageError
from lakerank.lake.blobs import ChangedFile
from lakerank.lake.formats import READERS, SPARK_TABLE, resolve
from lakerank.lake.snapshot import Field
from lakerank.lake.storage import Storage
from lakerank.plan.plan import Tables
from lakerank.rerank.run import run
from lakerank.spark.tables import ICEBERGS, Reading, file_uri, snapshot, table_files
from rerank.conftest import Lake, small_lake
from table_formats import rows_read

pytestmark = pytest.mark.spark


@pytest.fixture
def database(spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A session with an empty database `shop`, whose folder has a name to be quoted, and the door to its tables."""
    spark.sql(f"CREATE DATABASE shop LOCATION '{tmp_path / 'my %41 lake'}'")
    monkeypatch.setitem(READERS, SPARK_TABLE, partial(snapshot, spark))
    yield spark
    spark.sql("DROP DATABASE shop CASCADE")


def documents(rows: pa.Table) -> dict[str, str | None]:
    return dict(zip(rows["doc_id"].to_pylist(), rows["text"].to_pylist(), strict=True))


def test_columns_partitions_and_ids_are_those_of_the_table(database: Any) -> None:
    database.sql("CREATE TABLE shop.docs (Text string, page struct<bytes: binary>, DOC_ID bigint) USING parquet "
                 "PARTITIONED BY (DOC_ID)")  # fmt: skip
    database.sql("INSERT INTO shop.docs VALUES ('a', NULL, 7), ('b', named_struct('bytes', X'01'), 8), ('c', NULL, 8)")
    database.sql("ALTER TABLE shop.docs ADD COLUMNS (lang string)")
    address = "spark-table://spark_catalog.shop.docs"
    rows = rows_read(address, {"image": "page.bytes"})
    assert sorted(zip(rows["doc_id"].to_pylist(), rows["text"].to_pylist(), strict=True)) == [
        ("7", "a"), ("8", "b"), ("8", "c")]  # fmt: skip
    assert rows["image"].to_pylist().count(b"\x01") == 1
    files = resolve(Storage(), address).files
    assert all(Path(file.uri).is_file() and file.version and file.deleted is None for file in files)


def test_what_the_catalog_says_of_a_partition_holds_not_its_folder(database: Any, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "doc_id": ["of the file"]}), tmp_path / "doc_id=other.parquet")
    folder = tmp_path / "elsewhere" / "doc_id=folder"
    folder.mkdir(parents=True)
    (tmp_path / "doc_id=other.parquet").rename(folder / "part.parquet")
    database.sql("CREATE TABLE shop.docs (text string, doc_id string) USING parquet PARTITIONED BY (doc_id)")
    database.sql(f"ALTER TABLE shop.docs ADD PARTITION (doc_id = 'of the catalog') LOCATION '{folder}'")
    assert documents(rows_read("spark-table://shop.docs")) == {"of the catalog": "a"}


def test_a_column_that_the_table_lacks_is_not_read_from_its_files(database: Any, tmp_path: Path) -> None:
    pq.write_table(pa.table({"doc_id": ["a"], "text": ["of another"], "body": [b"b"]}), tmp_path / "part.parquet")
    database.sql(f"CREATE TABLE shop.docs (doc_id string, body binary) USING parquet LOCATION '{tmp_path}'")
    assert documents(rows_read("spark-table://shop.docs", {"image": "body"})) == {"a": None}


REFUSED = [
    ("spark-table://", ConfigError, "expected spark-table://CATALOG.NAMESPACE.TABLE"),
    ("spark-table://shop.docs; DROP TABLE shop.docs", ConfigError, "expected spark-table://"),
    ("spark-table://shop.docs@3", ConfigError, "has no versions: leave @3 out"),
    ("spark-table://shop.nothing", StorageError, "TABLE_OR_VIEW_NOT_FOUND.*spark.conf"),
    ("spark-table://nowhere.shop.docs", StorageError, "nowhere.*spark.conf"),
    ("spark-table://shop.of_some", StorageError, "is a view"),
    ("spark-table://temporary", StorageError, "is a view"),
    ("spark-table://shop.orc", StorageError, "is kept as orc"),
    ("spark-table://shop.table", StorageError, "has no rows"),
    ("spark-table://`shop`.`table`", StorageError, "has no rows"),
]


@pytest.mark.nightly
def test_what_is_no_table_of_parquet_files_is_refused(database: Any) -> None:
    database.sql("CREATE TABLE shop.docs USING parquet AS SELECT 'a' doc_id, 'b' text")
    database.sql("CREATE VIEW shop.of_some AS SELECT * FROM shop.docs WHERE text = 'b'")
    database.table("shop.docs").createOrReplaceTempView("temporary")
    database.sql("CREATE TABLE shop.orc USING orc AS SELECT 'a' doc_id, 'b' text")
    database.sql("CREATE TABLE shop.`table` (doc_id string, text string) USING parquet")
    for address, error, message in REFUSED:
        with pytest.raises(error, match=message):
            resolve(Storage(), address)
    assert database.catalog.tableExists("shop.docs")


def test_outside_of_a_job_such_a_table_asks_for_one() -> None:
    with pytest.raises(DependencyError, match="only Spark can read"):
        resolve(Storage(), "spark-table://shop.docs")


def test_rows_that_a_frame_lacks_are_deleted(spark: Any, tmp_path: Path) -> None:
    """As Iceberg gives them: `_file`, not encoded, and `_pos`."""
    random = np.random.default_rng(1)
    present = {
        "whole": np.arange(70_000),
        "some of each bitmap": np.flatnonzero(random.random(70_000) < 0.5),
        "no middle, no end": np.r_[0:100, 65_536:65_540],
        "a%20b": np.array([2]),
        "last": np.array([69_999]),
    }
    for name in present:
        pq.write_table(pa.table({"n": pa.array(np.arange(70_000), pa.int32())}), tmp_path / f"{name}.parquet")
    rows = [(f"file:{tmp_path}/{name}.parquet", int(row), name[0]) for name, of in present.items() for row in of]
    random.shuffle(rows)
    table = pa.table(dict(zip(("_file", "_pos", "first"), map(list, zip(*rows, strict=True)), strict=True)))
    fields = {"n": Field(3, ("n",))}
    reading = Reading(ICEBERGS, fields, ["first"], {"lang": "de"}, version=1)
    files = {Path(file.uri).stem: file for file in table_files(Storage(), spark.createDataFrame(table), reading)}
    assert files.keys() == present.keys()
    for name, of in present.items():
        file = files[name]
        assert np.array_equal(file.deleted_rows(), np.setdiff1d(np.arange(70_000), of)), name
        assert (file.rows, file.version, file.fields) == (70_000, "", fields)
        assert file.values == {"lang": "de", "first": name[0]}
        assert file.size == (tmp_path / f"{name}.parquet").stat().st_size
    assert files["whole"].deleted is None


def test_addresses_of_files_are_those_of_the_other_doors() -> None:
    assert file_uri("file:///a/x%2520y/l%3D1", True) == file_uri("file:/a/x%20y/l=1", False) == "/a/x%20y/l=1"
    assert file_uri("s3a://bucket/a b", False) == file_uri("s3n://bucket/a%20b", True) == "s3://bucket/a b"
    assert file_uri("abfss://c@a.dfs.core.windows.net/x", False) == "abfss://c@a.dfs.core.windows.net/x"


def tables_of(spark: Any, lake: Lake) -> Tables:
    """The lake's tables in the catalog, documents in partitions."""
    for name in ("documents", "queries", "candidates"):
        frame = spark.read.parquet(str(lake.folder / f"{name}.parquet"))
        frame = frame.withColumn("part", frame[frame.columns[0]].substr(3, 1)).repartition(2)
        frame.write.partitionBy(*["part"] * (name == "documents")).saveAsTable(f"shop.{name}")
    return Tables(*(f"spark-table://shop.{name}" for name in ("documents", "queries", "candidates")))


@pytest.mark.nightly
def test_a_run_over_a_catalog_is_one_over_its_files(database: Any, runner: Any, tmp_path: Path) -> None:
    lake = small_lake(tmp_path)
    run(runner, Storage(), lake.job("plain"))
    expected = lake.ranked("plain")
    (tmp_path / "other").mkdir()
    other = small_lake(tmp_path / "other")
    tables = tables_of(database, other)
    run(runner, Storage(), other.job("r1", tables=tables), ["plan"])
    database.sql("INSERT INTO shop.candidates VALUES ('q00', 'd99', NULL, 1, '9')")  # the run keeps to its files
    READERS[SPARK_TABLE] = None  # type: ignore[assignment] # what is planned needs no Spark
    assert run(runner, Storage(), other.job("r1", tables=tables))["scored"] == 240
    assert other.ranked("r1") == expected
    inputs = json.loads((other.folder / "out" / "runs" / "r1" / "manifest.json").read_text())["inputs"]
    assert inputs["documents"]["table"] == "spark-table://shop.documents"
    assert inputs["documents"]["rows"] == 30
    READERS[SPARK_TABLE] = partial(snapshot, database)
    later = run(runner, Storage(), other.job("r2", tables=tables))
    assert (later["candidates"], later["scored"], later["reused"]) == (241, 0, 240)


@pytest.mark.nightly
def test_a_table_that_is_overwritten_while_it_is_needed_stops_the_run(
    database: Any, runner: Any, tmp_path: Path
) -> None:
    lake = small_lake(tmp_path)
    tables = tables_of(database, lake)
    run(runner, Storage(), lake.job("r1", tables=tables), ["plan"])
    database.sql("INSERT OVERWRITE shop.documents (doc_id, text, part) VALUES ('d01', 'other', '1')")
    with pytest.raises(ChangedFile, match="since the run was planned"):
        run(runner, Storage(), lake.job("r1", tables=tables), ["score"])
    assert not [*(lake.folder / "out").glob("scores/*/*")]
