"""Which files of a folder are a table's, and which folders are another format's."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest

from lakerank.errors import StorageError
from lakerank.lake.formats import resolve
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import fragments, parquet_bytes
from lakerank.schemas import QRELS

PARQUET = parquet_bytes(pa.table({"query_id": ["q"], "doc_id": ["d"], "relevance": [1]}), 1)


def put(storage: Storage, folder: str, *names: str, content: bytes = PARQUET) -> None:
    for name in names:
        storage.create(join(folder, name), content)


def names(storage: Storage, address: str, below: str) -> list[str]:
    return [file.uri.removeprefix(f"{below}/") for file in resolve(storage, address).files]


def test_files_without_a_suffix_are_data_if_they_are_parquet(
    storage: Storage, empty_folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    put(storage, empty_folder, "000000_0", "day=1/part.0.", "_lang=de/x", "c.snappy", "named.parquet")
    put(storage, empty_folder, "_x", ".y", "_tmp/000000_0", "readme.md", "data.csv")
    put(storage, empty_folder, "empty", content=b"")
    put(storage, empty_folder, "text", content=b"PAR1 is how Parquet begins")
    put(storage, empty_folder, "crypt", content=b"PARE" + PARQUET[4:-4] + b"PARE")
    put(storage, empty_folder, "short", content=b"PAR1")
    put(storage, empty_folder, "_SUCCESS", content=b"")
    expected = ["000000_0", "_lang=de/x", "c.snappy", "day=1/part.0.", "named.parquet"]
    for _ in range(2):
        assert names(storage, empty_folder, empty_folder) == expected
    snapshot = resolve(storage, empty_folder)
    assert snapshot.passed_over == 8
    assert sum(fragment.rows for fragment in fragments(storage, snapshot, QRELS)) == 5
    messages = [record.getMessage() for record in caplog.records if record.name == "lakerank.lake.formats.plain"]
    passed = "_tmp/, _x, crypt, data.csv, empty and 3 more (hidden, or not Parquet)"
    assert messages == [f"{empty_folder}: not read: {passed}"]


def test_an_empty_file_that_is_called_parquet_is_named(storage: Storage, empty_folder: str) -> None:
    put(storage, empty_folder, "a.parquet")
    put(storage, empty_folder, "b.parquet", content=b"")
    with pytest.raises(StorageError, match=r"b\.parquet: cannot be opened .*0 bytes"):
        fragments(storage, empty_folder, QRELS)


ADVICE = {
    "_delta_log/0.json": "in Delta's format, .*; name it as delta+.*{}, which",
    "metadata/v1.metadata.json": "in Iceberg's format, .*iceberg://<catalog>/<namespace>.<table>",
    ".hoodie/hoodie.properties": "in Hudi's format, .*write its current rows as plain Parquet",
    "_versions/1.manifest": "in Lance's format, .*as plain Parquet",
}


@pytest.mark.parametrize("mark", ADVICE)
@pytest.mark.parametrize(
    "address",
    ["t", "t/", "", "t/data", "t/data/lang=de", "t/*/*/*.parquet", "t/data/lang=de/a.parquet", "t/data/lang=*", "?"],
)
def test_what_is_of_a_table_of_another_format_is_refused_with_what_to_name(
    storage: Storage, empty_folder: str, mark: str, address: str
) -> None:
    put(storage, empty_folder, "t/data/lang=de/a.parquet")
    put(storage, join(empty_folder, "t"), mark, content=b"{}")
    advice = ADVICE[mark].replace("{}", re.escape(join(empty_folder, "t")))
    with pytest.raises(StorageError, match=advice):
        resolve(storage, f"{empty_folder}/{address}")


def test_folders_beside_a_table_of_another_format_are_plain(storage: Storage, empty_folder: str) -> None:
    put(storage, empty_folder, "_delta_log/0.json", "metadata/v1.metadata.json", content=b"{}")
    put(storage, empty_folder, "plain/a.parquet", "data.parquet/b.parquet")
    for name in ("plain", "data.parquet", "plain/*.parquet", "plain/a.parquet"):
        assert len(resolve(storage, join(empty_folder, name)).files) == 1


def test_a_table_in_the_folder_of_a_relative_name_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(Storage(), str(tmp_path), "_delta_log/0.json", content=b"{}")
    put(Storage(), str(tmp_path), "data/a.parquet")
    monkeypatch.chdir(tmp_path)
    for address in ("data", ".", "data/a.parquet", "*/*.parquet"):
        with pytest.raises(StorageError, match=re.escape(f"delta+file://{tmp_path}, ")):
            resolve(Storage(), address)
