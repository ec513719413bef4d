"""Iceberg tables: what a snapshot has is read, and nothing else, whichever way it deletes and renames."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.expressions import EqualTo
from pyiceberg.manifest import DataFileContent, FileFormat
from pyiceberg.types import LongType, StringType

from lakerank.errors import ConfigError, SchemaError, StorageError
from lakerank.lake.formats import resolve
from lakerank.lake.storage import Storage
from table_formats import IcebergLake, by_id, iceberg, rows_read

__all__ = ["iceberg"]  # a fixture


def documents(*ids: str, **columns: list[object]) -> pa.Table:
    return pa.table({"doc_id": list(ids), "text": [f"text of {name}" for name in ids], **columns})


def test_rows_of_a_snapshot_are_those_that_pyiceberg_reads(iceberg: IcebergLake) -> None:
    table = iceberg.create("docs", documents("a", "b", "c", "d", lang=["de", "de", None, None]), partition="lang")
    first = table.current_snapshot().snapshot_id
    table.append(documents("e", lang=["en"]))
    table.overwrite(documents("f", lang=["en"]), EqualTo("doc_id", "e"))
    table.upsert(pa.table({"doc_id": ["f", "g"], "text": ["new", "new"], "lang": ["en", "en"]}), ["doc_id"])
    table.delete("doc_id = 'a'")
    iceberg.delete_rows("docs", ["c"])
    now = by_id(rows_read("iceberg://lake/db.docs"))
    assert now == by_id(iceberg.table("docs").scan().to_arrow())
    assert now == {"b": "text of b", "d": "text of d", "f": "new", "g": "new"}
    assert [*by_id(rows_read(f"iceberg://lake/db.docs@{first}"))] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("vector", [False, True], ids=["positions", "vector"])
def test_deleted_rows_are_gone_and_rows_that_came_later_are_not(iceberg: IcebergLake, vector: bool) -> None:
    table = iceberg.create("docs", documents("a", "b", "c", "d"))
    iceberg.delete_rows("docs", ["b"], vector)
    iceberg.delete_rows("docs", ["d"])
    table.refresh()
    table.append(documents("b"))
    assert by_id(rows_read("iceberg://lake/db.docs")) == {name: f"text of {name}" for name in "abc"}
    files = resolve(Storage(), "iceberg://lake/db.docs").files
    assert sorted((file.rows, tuple(file.deleted_rows())) for file in files) == [(1, ()), (4, (1, 3))]


def test_columns_are_those_of_the_schema_whatever_files_call_them(iceberg: IcebergLake) -> None:
    table = iceberg.create("docs", documents("a", page=pa.array([1], pa.int32()), body=["was dropped"]))
    with table.update_schema() as schema:
        schema.rename_column("text", "words").update_column("page", LongType()).delete_column("body")
    with table.update_schema() as schema:
        schema.rename_column("doc_id", "sku").add_column("body", StringType())
    table.append(pa.table({"sku": ["b"], "words": ["words of b"], "page": [2**40], "body": ["text of b"]}))
    assert by_id(rows_read("iceberg://lake/db.docs", {"doc_id": "sku", "text": "words"})) == {
        "a": "text of a", "b": "words of b",
    }  # fmt: skip
    assert by_id(rows_read("iceberg://lake/db.docs", {"doc_id": "sku", "text": "body"})) == {
        "a": None,
        "b": "text of b",
    }
    with pytest.raises(SchemaError, match="no column 'doc_id'"):
        rows_read("iceberg://lake/db.docs")


def test_the_names_are_the_table_s_now_and_a_tag_s_those_of_its_time(iceberg: IcebergLake) -> None:
    table = iceberg.create("docs", documents("a"))
    table.manage_snapshots().create_tag(table.current_snapshot().snapshot_id, "first").commit()
    with table.update_schema() as schema:
        schema.rename_column("text", "body")
    address = "iceberg://lake/db.docs"
    assert by_id(rows_read(address, {"text": "body"})) == {"a": "text of a"}
    assert by_id(rows_read(f"{address}@main", {"text": "body"})) == {"a": "text of a"}
    assert by_id(rows_read(f"{address}@first")) == {"a": "text of a"}
    pinned = resolve(Storage(), address).address
    with table.update_schema() as schema:
        schema.rename_column("body", "words")
    assert by_id(rows_read(pinned, {"text": "body"})) == {"a": "text of a"}


def test_files_without_field_ids_are_read_by_the_name_mapping(iceberg: IcebergLake, tmp_path: Path) -> None:
    old = tmp_path / "old.parquet"
    pq.write_table(documents("a"), old)
    table = iceberg.catalog.create_table("db.docs", documents("a").schema)
    table.add_files([str(old)])
    with table.update_schema() as schema:
        schema.rename_column("text", "body")
    table.append(pa.table({"doc_id": ["b"], "body": ["text of b"]}))
    assert by_id(rows_read("iceberg://lake/db.docs", {"text": "body"})) == {"a": "text of a", "b": "text of b"}
    mapping = json.loads(iceberg.table("docs").properties["schema.name-mapping.default"])
    with iceberg.table("docs").transaction() as change:
        change.set_properties({"schema.name-mapping.default": json.dumps(mapping[:1])})
    with pytest.raises(SchemaError, match=r"no field ids, and the table has no schema\.name-mapping\.default"):
        rows_read("iceberg://lake/db.docs", {"text": "body"})


def test_a_partition_value_fills_a_column_that_files_lack(iceberg: IcebergLake, tmp_path: Path) -> None:
    """As of a Hive table that was taken over: its files have no partition columns."""
    table = iceberg.create("docs", documents("a", shard=["é=7"]), partition="shard")
    (task,) = table.scan().plan_files()
    whole = pq.read_table(task.file.file_path.removeprefix("file://"), partitioning=None)
    pq.write_table(whole.drop_columns("shard"), task.file.file_path.removeprefix("file://"))
    assert by_id(rows_read("iceberg://lake/db.docs", {"text": "shard"})) == {"a": "é=7"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"content": DataFileContent.EQUALITY_DELETES, "equality_ids": [1]}, "equality deletes.*rewrite_data_files"),
        ({"file_format": FileFormat.ORC}, "ORC files.*write.format.default=parquet"),
        ({"key_metadata": b"key"}, "encrypted files"),
    ],
    ids=["equality-deletes", "orc", "encrypted"],
)
def test_what_is_not_read_is_refused(iceberg: IcebergLake, changes: dict[str, object], message: str) -> None:
    iceberg.create("docs", documents("a"))
    iceberg.commit_file("docs", **changes)
    with pytest.raises(StorageError, match=f"db.docs: has {message}.*spark-table://"):
        resolve(Storage(), "iceberg://lake/db.docs")


def test_equality_deletes_that_hold_for_no_file_any_more_are_no_matter(iceberg: IcebergLake) -> None:
    table = iceberg.create("docs", documents("a", "b"))
    iceberg.commit_file("docs", content=DataFileContent.EQUALITY_DELETES, equality_ids=[1])
    table.refresh()
    with table.transaction() as change, change.update_snapshot().overwrite() as update:
        update.delete_data_file(next(iter(table.scan(snapshot_id=table.snapshots()[0].snapshot_id).plan_files())).file)
    table.append(documents("c"))
    assert [*by_id(rows_read("iceberg://lake/db.docs"))] == ["c"]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("iceberg://other/db.docs", r"knows no catalog 'other' \(it knows lake\); name it in ~/\.pyiceberg\.yaml"),
        ("iceberg://lake/db.doc", r"no such table \(tables: db\.docs\)"),
        ("iceberg://lake/dc.docs", r"no such table \(namespaces: db\)"),
        ("iceberg://lake/db.docs@nightly", r"no such snapshot \(there are main, \d+\)"),
        ("iceberg://lake/db.docs@123:0", r"has been expired.*history\.expire\.max-snapshot-age-ms"),
        ("iceberg://lake/db.empty", "has no snapshot yet"),
        ("iceberg://lake", "expected iceberg://CATALOG/NAMESPACE"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(iceberg: IcebergLake, address: str, message: str) -> None:
    if "empty" in address:
        iceberg.catalog.create_table("db.empty", documents("a").schema)
    iceberg.create("docs", documents("a"))
    with pytest.raises((StorageError, ConfigError), match=message):
        resolve(Storage(), address)


def test_no_secret_of_the_catalog_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYICEBERG_CATALOG__REMOTE__URI", "http://user:pa55word-of-uri@127.0.0.1:9/")
    monkeypatch.setenv("PYICEBERG_CATALOG__REMOTE__CREDENTIAL", "client:s3cret-of-client")
    with pytest.raises(StorageError) as refused:
        resolve(Storage(), "iceberg://remote/db.docs")
    assert "iceberg://remote/db.docs: cannot be read" in str(refused.value)
    chain = repr(refused.value) + repr(refused.value.__cause__)
    assert "pa55word-of-uri" not in chain
    assert "s3cret-of-client" not in chain


class _RestCatalog(BaseHTTPRequestHandler):
    """What the Iceberg REST protocol answers to readers, over another catalog; needs the bearer token of `server`."""

    server: _RestServer

    def do_GET(self) -> None:
        if self.headers["Authorization"] != f"Bearer {self.server.token}":
            self._answer(401, {"error": {"message": "no such token", "type": "NotAuthorizedException", "code": 401}})
        elif self.path.startswith("/v1/config"):
            self._answer(200, {"defaults": {}, "overrides": {}})
        elif self.path.endswith("/namespaces/db/tables/docs"):
            table = self.server.lake.table("docs")
            of_table = {"metadata-location": table.metadata_location, "config": {}}
            self._answer(200, {**of_table, "metadata": json.loads(table.metadata.model_dump_json())})
        elif self.path.endswith("/namespaces/db/tables"):
            self._answer(200, {"identifiers": [{"namespace": ["db"], "name": "docs"}]})
        else:
            self._answer(404, {"error": {"message": "no such table", "type": "NoSuchTableException", "code": 404}})

    def _answer(self, status: int, content: dict[str, object]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""


class _RestServer(ThreadingHTTPServer):
    def __init__(self, lake: IcebergLake, token: str) -> None:
        super().__init__(("127.0.0.1", 0), _RestCatalog)
        self.lake, self.token = lake, token


def test_a_catalog_behind_rest_is_read_and_its_token_is_shown_nowhere(
    iceberg: IcebergLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    iceberg.create("docs", documents("a", "b"))
    iceberg.delete_rows("docs", ["b"])
    with _RestServer(iceberg, "t0ken-of-catalog") as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PYICEBERG_CATALOG__REMOTE__URI", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("PYICEBERG_CATALOG__REMOTE__TOKEN", "t0ken-of-catalog")
        assert by_id(rows_read("iceberg://remote/db.docs")) == {"a": "text of a"}
        with pytest.raises(StorageError, match=r"no such table \(tables: db\.docs\)"):
            resolve(Storage(), "iceberg://remote/db.dogs")
        monkeypatch.setenv("PYICEBERG_CATALOG__REMOTE__TOKEN", "0ther-token-of-catalog")
        with pytest.raises(StorageError, match=r"cannot be read \(UnauthorizedError.*PYICEBERG_CATALOG") as refused:
            resolve(Storage(), "iceberg://remote/db.docs")
        server.shutdown()
    assert "token-of-catalog" not in repr(refused.value) + repr(refused.value.__cause__)


def test_deletes_of_a_file_do_not_hold_when_it_is_added_again(iceberg: IcebergLake, tmp_path: Path) -> None:
    pq.write_table(documents("a", "b"), tmp_path / "x.parquet")
    table = iceberg.catalog.create_table("db.docs", documents("a").schema)
    table.add_files([str(tmp_path / "x.parquet")])
    path = next(iter(table.scan().plan_files())).file.file_path
    deletes = f"{table.location()}/data/deletes.parquet"
    table.append(documents("c"))
    pq.write_table(pa.table({"file_path": [path], "pos": [0]}), deletes.removeprefix("file://"))
    bounds = {2147483546: path.encode()}
    kind = {"content": DataFileContent.POSITION_DELETES, "file_path": deletes, "lower_bounds": bounds}
    iceberg.commit_file("docs", **kind, upper_bounds=bounds)
    assert [*by_id(rows_read("iceberg://lake/db.docs"))] == ["b", "c"]
    table = iceberg.table("docs")
    with table.transaction() as change, change.update_snapshot().overwrite() as update:
        update.delete_data_file(next(task.file for task in table.scan().plan_files() if task.file.file_path == path))
    iceberg.table("docs").add_files([str(tmp_path / "x.parquet")])
    assert [*by_id(rows_read("iceberg://lake/db.docs"))] == ["a", "b", "c"]
