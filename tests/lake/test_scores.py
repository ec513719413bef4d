"""A unit's file is written once, reads back unchanged, and is rejected if it is corrupt."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakerank.errors import SchemaError, StorageError
from lakerank.lake.scores import (
    CorruptScoreFile,
    finished_units,
    read_unit,
    scores_folder,
    unit_address,
    write_unit,
)
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import parquet_bytes
from lakerank.schemas import SCORES

SCORER = "f" * 16
PAIRS = [("q2", "d1", "hq2", "hd1"), ("q1", "d2", "hq1", "hd2"), ("q1", "d1", "hq1", "hd1")]
UNIT = "a1" * 16


def rows(pairs: list[tuple[str, str, str, str]] = PAIRS) -> pa.Table:
    scored = [
        {"query_id": q, "doc_id": d, "query_hash": hq, "doc_hash": hd, "logit": 0.1, "query_tokens": 3}
        for q, d, hq, hd in pairs
    ]
    return pa.Table.from_pylist(scored, schema=SCORES)


def test_scores_are_read_back_sorted(storage: Storage, empty_folder: str) -> None:
    assert finished_units(storage, empty_folder, SCORER) == set()
    assert write_unit(storage, empty_folder, SCORER, UNIT, rows())
    assert finished_units(storage, empty_folder, SCORER) == {UNIT}
    result = read_unit(storage, empty_folder, SCORER, UNIT)
    assert result.schema == SCORES
    assert result.equals(rows([PAIRS[2], PAIRS[0], PAIRS[1]]))


def test_a_unit_is_written_once(storage: Storage, empty_folder: str) -> None:
    assert write_unit(storage, empty_folder, SCORER, UNIT, rows())
    other = rows().set_column(4, SCORES.field("logit"), pa.array([9.0] * 3, pa.float32()))
    assert not write_unit(storage, empty_folder, SCORER, UNIT, other)
    assert read_unit(storage, empty_folder, SCORER, UNIT)["logit"].to_pylist() == pytest.approx([0.1] * 3)


@given(st.permutations(PAIRS))
def test_same_scores_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str, str, str]]
) -> None:
    storage, contents = Storage(), set()
    for order in (PAIRS, pairs):
        output = str(tmp_path_factory.mktemp("out"))
        columns = rows(order).select(SCORES.names[::-1]).replace_schema_metadata({"from": "elsewhere"})
        write_unit(storage, output, SCORER, UNIT, columns)
        contents.add(storage.read_bytes(unit_address(output, SCORER, UNIT)))
    assert len(contents) == 1


def test_a_unit_without_rows_is_a_unit(storage: Storage, empty_folder: str) -> None:
    assert write_unit(storage, empty_folder, SCORER, "empty", rows([]))
    assert read_unit(storage, empty_folder, SCORER, "empty").num_rows == 0


@pytest.mark.parametrize(
    "wrong",
    [
        rows().drop_columns(["logit"]),
        rows().set_column(0, "query_id", pa.array([None, "a", "b"], pa.string())),
        rows().set_column(4, "logit", pa.array([[1.0]] * 3)),
    ],
    ids=["column missing", "id missing", "list for a number"],
)
def test_rows_that_are_no_scores_are_refused(tmp_path: object, wrong: pa.Table) -> None:
    with pytest.raises(SchemaError, match="not scores"):
        write_unit(Storage(), str(tmp_path), SCORER, UNIT, wrong)
    assert finished_units(Storage(), str(tmp_path), SCORER) == set()


def test_only_unit_files_count_as_finished(storage: Storage, empty_folder: str) -> None:
    write_unit(storage, empty_folder, SCORER, UNIT, rows())
    write_unit(storage, empty_folder, "another", "other", rows())
    storage.create(join(scores_folder(empty_folder, SCORER), ".half.parquet"), b"")
    storage.create(join(scores_folder(empty_folder, SCORER), "notes.txt"), b"")
    assert finished_units(storage, empty_folder, SCORER) == {UNIT}


def replaced(storage: Storage, output: str, data: bytes) -> None:
    storage.replace(unit_address(output, SCORER, UNIT), data)


def test_a_truncated_file_is_torn_wherever_it_ends(tmp_path: object) -> None:
    storage, output = Storage(), str(tmp_path)
    write_unit(storage, output, SCORER, UNIT, rows())
    whole = storage.read_bytes(unit_address(output, SCORER, UNIT))
    for length in {*range(0, len(whole), 37), 1, 4, 8, 11, 12, len(whole) - 8, len(whole) - 4, len(whole) - 1}:
        replaced(storage, output, whole[:length])
        with pytest.raises(CorruptScoreFile, match=rf"{UNIT}\.parquet: .*delete the file"):
            read_unit(storage, output, SCORER, UNIT)
    replaced(storage, output, whole)
    assert read_unit(storage, output, SCORER, UNIT).num_rows == 3


def test_a_file_whose_pages_are_damaged_is_torn(tmp_path: object) -> None:
    storage, output = Storage(), str(tmp_path)
    write_unit(storage, output, SCORER, UNIT, rows())
    whole = storage.read_bytes(unit_address(output, SCORER, UNIT))
    chunk = pq.ParquetFile(pa.BufferReader(whole)).metadata.row_group(0).column(SCORES.get_field_index("logit"))
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    for position in range(start, start + chunk.total_compressed_size):
        damaged = bytearray(whole)
        damaged[position] ^= 0x01
        replaced(storage, output, bytes(damaged))
        try:
            result = read_unit(storage, output, SCORER, UNIT)
        except CorruptScoreFile:
            continue
        assert result["logit"].to_pylist() == pytest.approx([0.1] * 3)  # a flipped bit that changes no value


def test_a_file_of_something_else_is_torn(storage: Storage, empty_folder: str) -> None:
    write_unit(storage, empty_folder, SCORER, "other", rows())
    replaced(storage, empty_folder, storage.read_bytes(unit_address(empty_folder, SCORER, "other")))
    with pytest.raises(CorruptScoreFile, match=f"lakerank.unit should be {UNIT}"):
        read_unit(storage, empty_folder, SCORER, UNIT)
    write_unit(storage, empty_folder, "another", UNIT, rows())
    replaced(storage, empty_folder, storage.read_bytes(unit_address(empty_folder, "another", UNIT)))
    with pytest.raises(CorruptScoreFile, match=f"lakerank.scorer should be {SCORER}"):
        read_unit(storage, empty_folder, SCORER, UNIT)


@pytest.mark.parametrize("count", ["2", "x"])
def test_a_file_with_another_number_of_rows_is_torn(tmp_path: object, count: str) -> None:
    metadata = {"lakerank.unit": UNIT, "lakerank.scorer": SCORER, "lakerank.rows": count}
    replaced(Storage(), str(tmp_path), parquet_bytes(rows(), 10, metadata))
    with pytest.raises(CorruptScoreFile, match=r"lakerank\.rows should be 3"):
        read_unit(Storage(), str(tmp_path), SCORER, UNIT)


def test_a_file_of_another_schema_is_torn(tmp_path: object) -> None:
    metadata = {"lakerank.unit": UNIT, "lakerank.scorer": SCORER, "lakerank.rows": "3"}
    wider = rows().set_column(4, "logit", pa.array([0.1] * 3, pa.float64()))
    replaced(Storage(), str(tmp_path), parquet_bytes(wider, 10, metadata))
    with pytest.raises(CorruptScoreFile, match="columns are not those of a score file"):
        read_unit(Storage(), str(tmp_path), SCORER, UNIT)


def test_a_unit_that_is_not_there_is_no_torn_one(storage: Storage, empty_folder: str) -> None:
    with pytest.raises(StorageError, match="cannot be read") as caught:
        read_unit(storage, empty_folder, SCORER, UNIT)
    assert not isinstance(caught.value, CorruptScoreFile)
