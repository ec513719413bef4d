"""Rows are fetched by reference, in the order asked for, reading each row group once where that can be."""

from __future__ import annotations

import pickle
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakerank.errors import SchemaError, StorageError
from lakerank.lake.blobs import Blob, BlobRef, ChangedFile, check_unchanged, fetch
from lakerank.lake.formats import resolve
from lakerank.lake.storage import Storage, StorageOptions, join
from lakerank.lake.tables import parquet_bytes
from lakerank.model.preprocess.pipeline import BoundedCache

ROWS, GROUP = 10, 4


def blob(file: int, row: int) -> Blob:
    images = () if row % 2 else (bytes([file, row]),)
    return Blob(f"f{file}r{row}", None if row % 3 == 0 else f"text {row}".encode(), images)


@pytest.fixture
def files(storage: Storage, empty_folder: str) -> list[str]:
    """Two files of ten rows in row groups of four."""
    uris = []
    for file in range(2):
        blobs = [blob(file, row) for row in range(ROWS)]
        table = pa.table(
            {
                "large": ["x" * 1000] * ROWS,
                "image": [b.image for b in blobs],
                "text": pa.array([b.text for b in blobs], pa.binary()).cast(pa.string()),
                "doc_id": [b.id for b in blobs],
            }
        )
        uris.append(join(empty_folder, f"{file}.parquet"))
        storage.create(uris[-1], parquet_bytes(table, GROUP))
    return uris


def ref(files: list[str], file: int, row: int) -> BlobRef:
    return BlobRef(files[file], row // GROUP, row % GROUP)


ORDERS = [
    [],
    [(0, 5)],
    [(file, row) for file in range(2) for row in range(ROWS)],
    [(0, 3), (0, 1), (0, 2), (0, 1), (0, 3)],
    [(1, 9), (0, 0), (1, 9), (0, 4), (0, 0), (1, 1)],
]


@pytest.mark.parametrize("places", ORDERS)
@pytest.mark.parametrize("cache_bytes", [None, 0, 10**6])
def test_blobs_come_in_the_order_of_their_references(
    storage: Storage, files: list[str], places: list[tuple[int, int]], cache_bytes: int | None
) -> None:
    cache = None if cache_bytes is None else cache_of(cache_bytes)
    refs = [ref(files, *place) for place in places]
    expected = [blob(*place) for place in places]
    assert list(fetch(storage, refs, "doc_id", cache)) == expected
    assert list(fetch(storage, refs, "doc_id", cache)) == expected


@pytest.fixture(scope="module")
def one_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("blobs") / "a.parquet")
    rows = {"doc_id": [f"d{row}" for row in range(30)], "text": [str(row) for row in range(30)]}
    Storage().create(uri, parquet_bytes(pa.table(rows), 7))
    return uri


@given(st.lists(st.integers(0, 29), max_size=40))
def test_any_order_any_repetition(one_file: str, rows: list[int]) -> None:
    refs = [BlobRef(one_file, row // 7, row % 7) for row in rows]
    assert [blob.id for blob in fetch(Storage(), refs, "doc_id")] == [f"d{row}" for row in rows]


def test_blobs_are_fetched_as_they_are_asked_for(one_file: str) -> None:
    refs = [BlobRef(one_file, 0, 0), BlobRef(f"{one_file}-gone", 0, 0)]
    blobs = fetch(Storage(), refs, "doc_id")
    assert next(blobs).id == "d0"
    with pytest.raises(StorageError, match=r"a\.parquet-gone: "):
        next(blobs)


@pytest.mark.parametrize("place", [BlobRef("", 0, 7), BlobRef("", 4, 2), BlobRef("", 5, 0), BlobRef("", -1, 0)])
def test_a_reference_that_leads_nowhere_is_named(one_file: str, place: BlobRef) -> None:
    with pytest.raises(StorageError, match=r"a\.parquet: row group -?\d has no such row"):
        list(fetch(Storage(), [BlobRef(one_file, place.row_group, place.row)], "doc_id"))


def test_a_file_that_is_gone_or_of_another_table_is_named(one_file: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"gone\.parquet: cannot be opened"):
        list(fetch(Storage(), [BlobRef(str(tmp_path / "gone.parquet"), 0, 0)], "doc_id"))
    with pytest.raises(SchemaError, match="no column 'query_id'"):
        list(fetch(Storage(), [BlobRef(one_file, 0, 0)], "query_id"))


def test_text_that_is_not_utf8_comes_as_it_is(tmp_path: Path) -> None:
    raw = pa.array([b"ok", b"\xff\xfe bad"], pa.binary())
    table = pa.table({"doc_id": ["a", "b"], "text": pa.Array.from_buffers(pa.string(), 2, raw.buffers())})
    uri = str(tmp_path / "a.parquet")
    Storage().create(uri, parquet_bytes(table, 10))
    assert [blob.text for blob in fetch(Storage(), [BlobRef(uri, 0, 0), BlobRef(uri, 0, 1)], "doc_id")] == [
        b"ok",
        b"\xff\xfe bad",
    ]


def test_each_row_group_is_read_once_in_file_order_and_other_columns_never(s3_storage: Storage, faulty_s3: Any) -> None:
    uri, groups, size = f"s3://lake/{uuid.uuid4().hex}.parquet", 5, 40_000
    unrelated = [uuid.uuid4().bytes * (size // 16) for _ in range(groups)]
    images = [uuid.uuid4().bytes * (size // 16) for _ in range(groups)]
    table = pa.table({"doc_id": [str(n) for n in range(groups)], "image": images, "unrelated": unrelated})
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(table, sink, row_group_size=1, compression=None, use_dictionary=False)
    s3_storage.create(uri, bytes(sink.getvalue()))
    storage = Storage(StorageOptions(endpoint_url=faulty_s3.endpoint, region="us-east-1"))
    refs = [BlobRef(uri, group, 0) for group in range(groups) for _ in range(3)]
    assert [blob.image for blob in fetch(storage, refs, "doc_id")] == [image for image in images for _ in range(3)]
    ranges = [value.removeprefix("bytes=").split("-") for _, _, value in faulty_s3.requests if value]
    footer = 65_536
    assert sum(int(last) - int(first) + 1 for first, last in ranges) < groups * size * 1.2 + footer
    assert len(ranges) <= 1 + groups * 2


def cache_of(max_bytes: int) -> BoundedCache[pa.Table]:
    return BoundedCache(max_bytes, lambda group: group.nbytes)


def test_a_cached_row_group_is_not_read_again(tmp_path: Path) -> None:
    uri, cache = str(tmp_path / "a.parquet"), cache_of(10**6)
    Storage().create(uri, parquet_bytes(pa.table({"doc_id": ["a", "b"]}), 10))
    assert [blob.id for blob in fetch(Storage(), [BlobRef(uri, 0, 1)], "doc_id", cache)] == ["b"]
    Storage().delete(uri)
    assert [blob.id for blob in fetch(Storage(), [BlobRef(uri, 0, 0)], "doc_id", cache)] == ["a"]


def test_a_file_replaced_since_it_was_planned_is_never_read(storage: Storage, files: list[str]) -> None:
    planned = {info.uri: info for file in files for info in resolve(storage, file).files}
    refs = [ref(files, 0, 1), ref(files, 1, 1)]
    cache = cache_of(10**6)
    assert [result.id for result in fetch(storage, refs, "doc_id", cache, planned)] == ["f0r1", "f1r1"]
    same_shape = pa.table({"doc_id": [f"x{row}" for row in range(ROWS)]})
    storage.replace(files[1], parquet_bytes(same_shape, GROUP))
    blobs = fetch(storage, refs, "doc_id", files=planned)
    assert next(blobs).id == "f0r1"
    with pytest.raises(ChangedFile, match=r"1\.parquet: it has changed .*another --run-id"):
        next(blobs)
    check_unchanged(storage, planned, files[:1])
    with pytest.raises(ChangedFile, match=r"1\.parquet: it has changed"):
        check_unchanged(storage, planned, files)
    later = {info.uri: info for file in files for info in resolve(storage, file).files}
    assert [result.id for result in fetch(storage, refs, "doc_id", cache, later)] == ["f0r1", "x1"], (
        "not the cached row"
    )
    storage.delete(files[0])
    with pytest.raises(ChangedFile, match=r"0\.parquet: it has changed"):
        check_unchanged(storage, later, files)


def test_what_a_worker_raises_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(ChangedFile("s3://lake/a.parquet", "gone")))  # noqa: S301
    assert str(error).startswith("s3://lake/a.parquet: gone; ")


@pytest.mark.parametrize("window", [1, 300, 10**6])
def test_small_row_groups_are_read_together_and_only_those_that_are_wanted(tmp_path: Path, window: int) -> None:
    count = 60
    table = pa.table({"doc_id": [f"d{n}" for n in range(count)], "image": [bytes([n]) * 100 for n in range(count)]})
    address = str(tmp_path / "small.parquet")
    pq.write_table(table, address, row_group_size=3, compression="none")
    expected = [0, 1, 2, 3, 7, 8, 20, 21, 50, 59, 59, 4, 30, 29, 0]
    refs = [BlobRef(address, n // 3, n % 3) for n in expected]
    assert [blob.id for blob in fetch(Storage(), refs, "doc_id", window_bytes=window)] == [f"d{n}" for n in expected]
    with pytest.raises(ChangedFile, match="no such row"):
        list(fetch(Storage(), [*refs[:4], BlobRef(address, 2, 3)], "doc_id", window_bytes=window))
