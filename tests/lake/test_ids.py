"""Ids of any type are the same text in every table."""

from __future__ import annotations

import uuid
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakerank.errors import SchemaError
from lakerank.lake.ids import as_text, with_types, written_as
from lakerank.lake.storage import Storage
from lakerank.lake.tables import read_table_file
from lakerank.schemas import QRELS

INTEGERS = {
    name: pa.type_for_alias(name) for sign in ("int", "uint") for name in (f"{sign}{n}" for n in (8, 16, 32, 64))
}


@given(st.sampled_from(sorted(INTEGERS)), st.data())
def test_whole_numbers_go_to_text_and_back(name: str, data: st.DataObject) -> None:
    bits, signed = int(name.lstrip("uint")), not name.startswith("u")
    least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    numbers = data.draw(st.lists(st.none() | st.integers(least, most)))
    column = pa.array(numbers, INTEGERS[name])
    expected = [None if number is None else str(number) for number in numbers]
    assert as_text(column).to_pylist() == expected
    assert as_text(column.dictionary_encode()).to_pylist() == expected
    back = with_types(pa.table({"doc_id": as_text(column)}), {"doc_id": written_as([column.type])})
    assert back["doc_id"].combine_chunks().equals(column)


@given(st.lists(st.none() | st.integers(-(10**30), 10**30)), st.integers(-3, 7))
def test_decimals_without_a_fraction_are_the_text_of_their_whole_number(numbers: list[int | None], scale: int) -> None:
    values = [None if n is None else Decimal(n * 10 ** max(0, -scale)) for n in numbers]
    column = pa.array(values, pa.decimal256(50, scale))
    assert as_text(column).to_pylist() == [None if value is None else str(value) for value in values]
    assert written_as([column.type]) == "string"


@given(st.lists(st.none() | st.uuids()))
def test_sixteen_bytes_are_the_canonical_text_of_a_uuid(values: list[uuid.UUID | None]) -> None:
    column = pa.array([value and value.bytes for value in values], pa.binary(16))
    expected = [None if value is None else str(value) for value in values]
    assert as_text(column).to_pylist() == expected
    assert as_text(pa.ExtensionArray.from_storage(pa.uuid(), column)).to_pylist() == expected


@pytest.mark.parametrize(
    ("kinds", "written"),
    [
        (["int32", "int64"], "int64"),
        (["int64", "uint64"], "string"),
        (["uint64", "null"], "uint64"),
        (["string", "int64"], "string"),
        ([], "string"),
    ],
)
def test_files_of_several_types_are_written_with_one_that_holds_all(kinds: list[str], written: str) -> None:
    assert written_as(map(pa.type_for_alias, kinds)) == written


@pytest.mark.parametrize(
    ("column", "cast"),
    [
        (pa.array([1.0]), r"CAST\(doc_id AS BIGINT\)"),
        (pa.array([True]), r"CAST\(doc_id AS STRING\)"),
        (pa.array([1], pa.date32()), r"CAST\(doc_id AS STRING\)"),
        (pa.array([b"\x01"]), r"HEX\(doc_id\), or DECODE"),
        (pa.array([b"\x01" * 8], pa.binary(8)), r"write HEX\(doc_id\)"),
        (pa.array([{"a": 1}]), "found: struct"),
    ],
    ids=str,
)
def test_what_can_be_no_id_is_refused_with_the_cast_to_write(tmp_path: Path, column: pa.Array, cast: str) -> None:
    pq.write_table(pa.table({"query_id": ["q"], "doc_id": column, "relevance": [1]}), tmp_path / "a.parquet")
    with pytest.raises(SchemaError, match=rf"a\.parquet: column 'doc_id' should be text, a whole .*{cast}"):
        list(read_table_file(Storage(), str(tmp_path / "a.parquet"), QRELS))


def test_a_decimal_with_a_fraction_is_named_with_its_row(tmp_path: Path) -> None:
    ids = pa.array([Decimal("1.00"), None, Decimal("2.50")], pa.decimal128(9, 2))
    pq.write_table(pa.table({"query_id": ids, "doc_id": ["d"] * 3, "relevance": [1] * 3}), tmp_path / "a.parquet")
    with pytest.raises(SchemaError, match=r"'query_id' holds 2\.50, no whole number; an id has no fraction \(row 2 of"):
        list(read_table_file(Storage(), str(tmp_path / "a.parquet"), QRELS))


def test_a_bad_value_of_a_dictionary_that_no_row_has_is_no_fault() -> None:
    values = pa.array([Decimal("1.00"), Decimal("2.50")], pa.decimal128(9, 2))
    column = pa.DictionaryArray.from_arrays(pa.array([0, None, 0], pa.int8()), values)
    assert as_text(column).to_pylist() == ["1", None, "1"]
    with pytest.raises(pa.ArrowInvalid):
        as_text(pa.DictionaryArray.from_arrays(pa.array([1], pa.int8()), values))
