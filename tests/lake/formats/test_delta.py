"""Delta tables: what a version has is read, and nothing else, whichever features it uses."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from lakerank.errors import ConfigError, SchemaError, StorageError
from lakerank.lake import is_local
from lakerank.lake.backends.s3 import delta_options
from lakerank.lake.formats import resolve
from lakerank.lake.storage import Storage, join
from table_formats import DeltaLog, by_id, field, rows_read


@pytest.fixture
def log(tmp_path: Path) -> DeltaLog:
    return DeltaLog(tmp_path / "docs")


def documents(*ids: str, **columns: list[Any]) -> pa.Table:
    return pa.table({"doc_id": list(ids), "text": [f"text of {name}" for name in ids], **columns})


def test_rows_of_a_version_are_those_that_deltalake_reads(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    write_deltalake(folder, documents("a", "b", "c", lang=["de", None, "a b/c%"]), partition_by=["lang"])
    write_deltalake(folder, documents("d", "e", lang=["de", "en"]), mode="append")
    DeltaTable(folder).delete("doc_id = 'a'")
    changes = pa.table({"doc_id": ["b", "f"], "text": ["new", "new"], "lang": [None, "en"]})
    merge = DeltaTable(folder).merge(changes, "t.doc_id = s.doc_id", source_alias="s", target_alias="t")
    merge.when_matched_update_all().when_not_matched_insert_all().execute()
    now = by_id(rows_read(f"delta+{folder}"))
    assert now == by_id(pa.table(DeltaTable(folder).scan()))
    assert [*now] == ["b", "c", "d", "e", "f"]
    assert [*by_id(rows_read(f"delta+{folder}@0"))] == ["a", "b", "c"]
    DeltaTable(folder).optimize.compact()
    assert by_id(rows_read(f"delta+file://{folder}")) == now


def test_a_snapshot_of_a_folder_is_found_from_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_deltalake(tmp_path / "docs", documents("a"))
    monkeypatch.chdir(tmp_path)
    assert resolve(Storage(), "delta+docs").address == f"delta+{tmp_path}/docs@0"


@pytest.mark.parametrize("address", ["delta+{}", "iceberg://lake/db.docs"])
def test_nothing_is_written_below_a_tables_address(tmp_path: Path, address: str) -> None:
    with pytest.raises(StorageError, match="name a folder"):
        Storage().check_writable(address.format(tmp_path / "docs"))
    assert not list(tmp_path.iterdir())


def test_a_value_that_is_only_in_the_log_fills_a_column(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    texts = ["a b/c%", None, "é=ü"]
    write_deltalake(folder, pa.table({"doc_id": ["a", "b", "c"], "lang": texts}), partition_by=["lang"])
    assert by_id(rows_read(f"delta+{folder}", {"text": "lang"})) == dict(zip("abc", texts, strict=True))


@pytest.mark.parametrize("inline", [True, False], ids=["in-the-log", "beside"])
def test_rows_of_a_deletion_vector_are_gone(log: DeltaLog, inline: bool) -> None:
    before = log.add("y.parquet", documents("d", "e"), [1], inline, lang=None)
    log.commit(
        log.protocol("deletionVectors"),
        log.metadata([field("doc_id"), field("text"), field("lang", partition=True)]),
        log.add("lang=a%2520b/x.parquet", documents("a", "b", "c"), [0, 2], inline, lang="a b"),
        before,
        log.add("z.parquet", documents("f"), lang=None),
    )
    assert [*by_id(rows_read(f"delta+{log.folder}"))] == ["b", "d", "f"]
    log.commit(log.remove(before), log.add("y.parquet", None, [0], inline, lang=None))
    assert [*by_id(rows_read(f"delta+{log.folder}"))] == ["b", "e", "f"]
    assert [*by_id(rows_read(f"delta+{log.folder}@0"))] == ["b", "d", "f"]


@pytest.mark.parametrize("mode", ["name", "id"])
def test_renamed_dropped_and_added_columns_are_those_of_the_schema(log: DeltaLog, mode: str) -> None:
    page = {"type": "struct", "fields": [field("bytes", "binary", "col-5", 5)]}
    fields = [field("sku", "string", "doc_id", 1), field("text", "string", "col-3", 3), field("page", page, "col-4", 4)]
    old = pa.table({"doc_id": ["a"], "text": ["was dropped"]}, schema=numbered({"doc_id": 1, "text": 2}))
    page_column = numbered_field("col-4", 4, pa.struct([numbered_field("col-5", 5, pa.binary())]))
    schema = numbered({"doc_id": 1, "col-3": 3}).append(page_column)
    new = pa.table({"doc_id": ["b"], "col-3": ["added"], "col-4": [{"col-5": b"png"}]}, schema=schema)
    log.commit(
        log.protocol("columnMapping"),
        log.metadata(fields, **{"delta.columnMapping.mode": mode}),
        log.add("old.parquet", old),
        log.add("new.parquet", new),
    )
    rows = rows_read(f"delta+{log.folder}", {"doc_id": "sku", "image": "page.bytes"})
    assert by_id(rows) == {"a": None, "b": "added"}
    assert sorted(map(str, rows["image"].to_pylist())) == ["None", "b'png'"]
    with pytest.raises(SchemaError, match=r"docs@0: no column 'doc_id' \(found: sku, text, page\)"):
        rows_read(f"delta+{log.folder}")


def numbered(columns: dict[str, int]) -> pa.Schema:
    return pa.schema([numbered_field(name, number) for name, number in columns.items()])


def numbered_field(name: str, number: int, kind: pa.DataType = pa.string()) -> pa.Field:  # noqa: B008 - immutable
    return pa.field(name, kind, metadata={"PARQUET:field_id": str(number)})


def test_in_mode_id_names_of_files_do_not_count(log: DeltaLog) -> None:
    log.commit(
        log.protocol("columnMapping"),
        log.metadata([field("doc_id", "string", "c1", 1), field("text", "string", "c2", 2)],
                     **{"delta.columnMapping.mode": "id"}),
        log.add("x.parquet", pa.table({"c2": ["a"], "c1": ["text"]}, schema=numbered({"c2": 1, "c1": 2}))),
    )  # fmt: skip
    assert by_id(rows_read(f"delta+{log.folder}")) == {"a": "text"}


def test_numbers_of_rows_come_from_the_log(log: DeltaLog) -> None:
    log.commit(log.protocol("deletionVectors"), log.metadata([field("doc_id"), field("text")]),
               log.add("x.parquet", documents("a", "b", "c"), [1]))  # fmt: skip
    (file,) = resolve(Storage(), f"delta+{log.folder}").files
    assert (file.rows, file.deleted_rows().tolist(), file.version) == (3, [1], "")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("delta+{folder}-2", r"docs-2: no Delta table is there"),
        ("delta+{folder}@7", r"version 7 cannot be read .* the latest is 0.*delta\.logRetentionDuration"),
        ("delta+", "expected delta\\+ADDRESS"),
    ],
)
def test_what_is_not_there_is_named(log: DeltaLog, address: str, message: str) -> None:
    log.commit(log.protocol(), log.metadata([field("doc_id"), field("text")]), log.add("x.parquet", documents("a")))
    with pytest.raises((StorageError, ConfigError), match=message):
        resolve(Storage(), address.format(folder=log.folder))


@pytest.mark.parametrize("feature", ["catalogManaged", "typeWidening", "neverHeardOf", "variantShredding"])
def test_a_feature_that_deltalake_does_not_read_is_refused(log: DeltaLog, feature: str) -> None:
    log.commit(log.protocol("deletionVectors", feature), log.metadata([field("doc_id"), field("text")]),
               log.add("x.parquet", documents("a", "b"), [0]))  # fmt: skip
    with pytest.raises(StorageError, match=r"DROP FEATURE.*spark-table://"):
        resolve(Storage(), f"delta+{log.folder}")


def test_a_pinned_table_is_read_at_its_snapshot_under_its_own_address(log: DeltaLog) -> None:
    log.commit(log.protocol(), log.metadata([field("doc_id"), field("body")]), log.add("x.parquet", documents("a")))
    address, storage = f"delta+{log.folder}", Storage(columns={f"delta+{log.folder}": {"text": "body"}})
    log.commit(log.add("y.parquet", documents("b")))
    assert len(resolve(storage, address).files) == 2
    log.commit(log.add("z.parquet", documents("c")))
    assert len(resolve(storage, address).files) == 2  # one snapshot a job, whatever is committed
    storage.pin({"documents": {"address": f"{address}@0"}, "queries": {}}, {"documents": address, "queries": "q"})
    for reader in (storage, pickle.loads(pickle.dumps(storage))):  # noqa: S301 - as workers get it
        (file,) = resolve(reader, address).files
        assert (file.uri, file.columns) == (str(log.folder / "x.parquet"), {"text": "body"})


def test_a_table_in_an_object_store_is_reached_as_its_files_are(storage: Storage, empty_folder: str) -> None:
    options = None if is_local(empty_folder) else delta_options(storage.options)
    write_deltalake(join(empty_folder, "docs"), documents("a"), storage_options=options)
    write_deltalake(join(empty_folder, "docs"), documents("b"), mode="append", storage_options=options)
    address = f"delta+{join(empty_folder, 'docs')}"
    assert [*by_id(rows_read(address, storage=storage))] == ["a", "b"]
    with pytest.raises(StorageError, match="no Delta table is there"):
        resolve(storage, f"{address}-2")
