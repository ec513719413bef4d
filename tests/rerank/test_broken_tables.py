"""Tables that someone has broken: a row is rejected under a code, a file stops the job and is named with what to do."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lakerank.cli.job import run_job
from lakerank.errors import SchemaError, StorageError
from lakerank.lake.tables import fragments
from lakerank.rerank.run import run
from lakerank.schemas import CANDIDATES, DOCUMENTS, QUERIES

SCHEMAS = {"documents": DOCUMENTS, "queries": QUERIES, "candidates": CANDIDATES}
TABLES = tuple(SCHEMAS)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def overwritten(file: Path) -> None:
    """The footer is intact; the rows before it are zeros."""
    data = bytearray(file.read_bytes())
    data[4:200] = bytes(196)
    file.write_bytes(data)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("harm", [cut_short, emptied, overwritten])
def test_a_damaged_file_stops_the_job_and_is_named(
    runner: Any, storage: Any, lake: Any, table: str, harm: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    file = lake.folder / f"{table}.parquet"
    harm(file)
    with pytest.raises(SystemExit, match="1"):
        run_job(lambda: run(runner, storage, lake.job("r")))
    output = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert output["error"] == "StorageError"
    assert output["message"].startswith((f"{file}: cannot be opened (", f"{file}: cannot be read ("))
    assert output["message"].endswith("whole Parquet file (`lakerank ingest` makes tables of other files)")
    assert len(output["message"]) < 600, "a message, not a traceback"
    assert not (lake.folder / "out" / "current.json").exists()


@pytest.mark.parametrize("table", TABLES)
def test_one_file_of_other_columns_in_a_folder_is_named(storage: Any, lake: Any, table: str) -> None:
    file = lake.folder / f"{table}.parquet"
    rows = file.read_bytes()
    file.unlink()
    file.mkdir()
    (file / "part-1.parquet").write_bytes(rows)
    pq.write_table(pa.table({"query": ["q00"], "document": ["d00"]}), file / "part-2.parquet")
    with pytest.raises(
        SchemaError, match=r"part-2\.parquet: no column '.*_id'.* \(found: query, document\); name other columns"
    ):
        fragments(storage, str(file), SCHEMAS[table])


@pytest.mark.parametrize("table", TABLES)
def test_a_folder_without_tables_is_named(storage: Any, lake: Any, table: str) -> None:
    file = lake.folder / f"{table}.parquet"
    file.unlink()
    file.mkdir()
    with pytest.raises(StorageError, match=rf"{table}\.parquet: no Parquet file is there; check the name"):
        fragments(storage, str(file), SCHEMAS[table])


def test_rows_without_an_id_match_nothing_and_harm_nothing(runner: Any, storage: Any, published: Any) -> None:
    lake = published
    nothing = {"query_id": None, "doc_id": None, "text": "of nobody"}
    for table, column in (("documents", "doc_id"), ("queries", "query_id")):
        rows = pq.read_table(lake.folder / f"{table}.parquet").to_pylist()
        lake.write(table, [{column: None, "text": nothing["text"]}, *rows, {column: None, "text": "of nobody else"}])
    pairs = [("q00", None), (None, "d00"), (None, None), (None, None), ("", "d00"), ("q00", "")]
    rows = pq.read_table(lake.folder / "candidates.parquet").to_pylist()
    lake.write("candidates", [*rows, *({"query_id": query, "doc_id": doc} for query, doc in pairs)])
    summary = run(runner, storage, lake.job("dirty"))
    assert lake.ranked("dirty") == lake.ranked("r1")
    assert {(row["query_id"], row["doc_id"]): row["reason"] for row in lake.rejected("dirty")} == {
        ("q00", None): "missing_document",
        (None, "d00"): "missing_query",
        (None, None): "missing_query",
        ("", "d00"): "missing_query",
        ("q00", ""): "missing_document",
    }
    assert summary["reused"] == 240
    assert summary["candidates"] == summary["reused"] + summary["rejected"] == 245
    assert summary["duplicates"] == 1


@pytest.mark.parametrize("table", ["documents", "queries"])
def test_an_empty_table_rejects_every_candidate(runner: Any, storage: Any, lake: Any, table: str) -> None:
    lake.write(table, [])
    summary = run(runner, storage, lake.job("r"))
    reason = {"documents": "missing_document", "queries": "missing_query"}[table]
    assert summary["rejected_by_reason"] == {reason: 240}
    assert summary["scored"] == 0


#: A DDS file's header with a kind of pixels that Pillow's reader of DDS fails on.
DDS = b"DDS " + struct.pack("<7I", 124, 0x1007, 8, 8, 0, 0, 0) + bytes(44) + struct.pack("<II4s", 32, 4, b"DX10")
DDS += bytes(20) + struct.pack("<10I", 0x1000, 0, 0, 0, 0, 200, 3, 0, 1, 0) + bytes(64)


def test_image_headers_that_break_a_reader_cost_their_rows_alone(runner: Any, storage: Any, lake: Any) -> None:
    with pytest.raises(NotImplementedError):
        Image.open(io.BytesIO(DDS))
    torn = [
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0\0",
        b"RIFF\0\0\0\0WEBPVP8L",
        b"II*\0\xff\xff\xff\x7f",
        b"GIF89a",
        b"BM\0",
    ]
    images = [DDS, *torn, b"II+\0\x08\0\0\0" + b"\xff" * 40]
    lake.write("documents", [{"doc_id": f"d{n:02}", "text": None, "image": image} for n, image in enumerate(images)])
    lake.write("queries", [{"query_id": "q", "text": None, "image": DDS}])
    lake.write("candidates", [{"query_id": "q", "doc_id": f"d{n:02}"} for n in range(len(images))])
    assert run(runner, storage, lake.job("r"))["scored"] == len(images), "by a reranker that reads no image"
