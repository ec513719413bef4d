"""Where the rows of some ids are, whatever their type, and what finding them costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from lakerank.lake.blobs import NOWHERE
from lakerank.lake.ranked import row_locations, rows_by_id
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import parquet_bytes
from lakerank.schemas import DOCUMENTS

IDS: dict[str, list[Any]] = {
    "text": ["", "10", "9", "b", "ü", "\U0001f600"],
    "whole numbers": [-(2**63), -5, 0, 9, 10, 2**63 - 1],
}


class CountedIds(frozenset[str]):
    """Ids that count how often they are gone through."""

    turns = 0

    def __iter__(self) -> Iterator[str]:
        self.turns += 1
        return super().__iter__()


def written(storage: Storage, folder: str, ids: list[Any], rows: int) -> str:
    uri = join(folder, "documents.parquet")
    storage.create(uri, parquet_bytes(pa.table({"doc_id": ids, "text": [f"text {row_id}" for row_id in ids]}), rows))
    return uri


@pytest.mark.parametrize("kind", IDS)
@pytest.mark.parametrize("rows", [1, 4])
def test_a_row_is_found_by_its_id(storage: Storage, empty_folder: str, kind: str, rows: int) -> None:
    ids = [str(row_id) for row_id in IDS[kind]]
    uri = written(storage, empty_folder, IDS[kind], rows)
    absent = ["-", "a", "11", "-6", "٣", "²", "9" * 5000, str(2**64)]
    places, files = row_locations(storage, uri, DOCUMENTS, [*ids, *absent])
    found = [(places[row_id].row_group, places[row_id].row) for row_id in ids]
    assert found == [divmod(number, rows) for number in range(len(ids))]
    assert {places[row_id] for row_id in absent} == {NOWHERE}
    assert [*files] == [uri]
    for row_id in ids:
        (row,) = rows_by_id(storage, uri, DOCUMENTS, [row_id, *absent], ["text"])
        assert row["text"] == f"text {row_id}".encode()
    assert [*rows_by_id(storage, uri, DOCUMENTS, absent, ["text"])] == []


def test_ids_are_gone_through_as_often_for_many_row_groups_as_for_one(storage: Storage, empty_folder: str) -> None:
    turns = []
    for rows in (200, 1):
        folder = join(empty_folder, str(rows))
        ids = CountedIds(map(str, range(100, 900)))  # of the first half of the row groups none
        row_locations(storage, written(storage, folder, [*range(200)], rows), DOCUMENTS, ids)
        turns.append(ids.turns)
    assert turns[0] == turns[1]


def test_a_table_is_not_looked_at_for_no_ids(storage: Storage, empty_folder: str) -> None:
    assert row_locations(storage, join(empty_folder, "none.parquet"), DOCUMENTS, []) == ({}, {})
