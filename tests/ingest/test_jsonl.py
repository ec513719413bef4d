"""JSON Lines: ids under three names, images by path or base64, and every fault with its line number."""

from __future__ import annotations

import base64
import io
import json

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from lakerank.ingest.lines import json_records, read_each, text_lines
from lakerank.ingest.readers.reader import ReadOptions
from lakerank.ingest.records import RecordReader
from lakerank.ingest.rejects import SourceFault, SourceReject
from lakerank.ingest.source import FileSource, SourceFile
from lakerank.records import Candidate, Qrel


def rows(content: bytes | str, table="documents", keep=(), max_line_bytes=2**20):
    stream = io.BytesIO(content.encode() if isinstance(content, str) else content)
    no_files = FileSource(MemoryFileSystem(), "/")
    reader = RecordReader(ReadOptions(table=table, keep=keep), no_files, SourceFile("f.jsonl", "/f.jsonl", 0))
    lines = text_lines("f.jsonl", stream, max_line_bytes)
    return list(read_each("f.jsonl", json_records("f.jsonl", lines), reader))


@pytest.mark.parametrize(
    ("field", "table"), [("doc_id", "documents"), ("query_id", "queries"), ("id", "documents"), ("_id", "queries")]
)
def test_ids_stand_under_several_names(field, table):
    [row] = rows(json.dumps({field: "x", "text": "t"}), table)
    assert (row.id, row.text, row.image) == ("x", "t", None)


def test_the_tables_own_id_comes_first_and_numbers_are_ids():
    [row] = rows('{"id": "other", "doc_id": 12, "text": ""}')
    assert (row.id, row.text) == ("12", "")


def test_images_are_base64_or_data_uris(png):
    encoded = base64.b64encode(png).decode()
    result = rows(f'{{"id": "a", "image": "{encoded}"}}\n{{"id": "b", "image": "data:image/png;base64,{encoded}"}}')
    assert [row.image for row in result] == [png, png]


def test_image_paths_stay_inside_the_source(write_files, run_ingest, png, tmp_path):
    (tmp_path / "secret.png").write_bytes(png)
    names = [
        "sub/in.png",
        "../secret.png",
        "sub/../../secret.png",
        "/etc/host.png",
        "link.png",
        "file:///etc/x.png",
        "gone.png",
    ]
    source = write_files(
        {
            "sub/in.png": png,
            "docs.jsonl": "".join(json.dumps({"id": name, "image": name}) + "\n" for name in names),
        }
    )
    (source / "link.png").symlink_to(tmp_path / "secret.png")
    done, table = run_ingest(source, kind="jsonl")
    assert table["doc_id"].to_pylist() == ["sub/in.png"]
    assert table["image"].to_pylist() == [png]
    assert done.written.rejected_by_fault == {"image_not_found": 1, "image_outside_source": 5}


def test_paths_are_relative_to_the_jsonl_file(write_files, run_ingest, png):
    source = write_files({"a/x.jsonl": '{"id": "1", "image": "../b/y.png"}', "b/y.png": png})
    _, table = run_ingest(source, kind="jsonl")
    assert table["image"].to_pylist() == [png]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"{", SourceFault.JSON_INVALID),
        (b"[1]", SourceFault.JSON_INVALID),
        (b'{"a":' * 100_000, SourceFault.JSON_INVALID),
        (b'{"id": ' + b"9" * 10_000 + b"}", SourceFault.JSON_INVALID),
        (b'{"id": "\xff"}', SourceFault.TEXT_UNDECODABLE),
        (b'{"id": "a", "text": "\\ud800"}', SourceFault.TEXT_UNDECODABLE),
        (b'{"text": "t"}', SourceFault.FIELD_MISSING),
        (b'{"id": "", "text": "t"}', SourceFault.FIELD_INVALID),
        (b'{"id": true, "text": "t"}', SourceFault.FIELD_INVALID),
        (b'{"id": "a"}', SourceFault.FIELD_MISSING),
        (b'{"id": "a", "text": 5}', SourceFault.FIELD_INVALID),
        (b'{"id": "a", "image": "!!"}', SourceFault.FIELD_INVALID),
        (b'{"id": "a", "image": "data:image/png,x"}', SourceFault.FIELD_INVALID),
        (b'{"id": "a", "text": "' + b"x" * 2**20 + b'"}', SourceFault.FILE_TOO_LARGE),
    ],
)
def test_faults_name_the_line(line, fault):
    result = rows(b'{"id": "1", "text": "t"}\n\n' + line + b'\n{"id": "4", "text": "t"}\n')
    assert [getattr(row, "id", None) for row in result] == ["1", None, "4"]
    assert isinstance(result[1], SourceReject)
    assert (result[1].fault, result[1].line, result[1].path) == (fault, 3, "f.jsonl")


def test_a_byte_order_mark_is_no_text():
    assert rows(b"\xef\xbb\xbf\n") == []
    [row] = rows(b'\xef\xbb\xbf{"id": "a", "text": "t"}\n')
    assert (row.id, row.text) == ("a", "t")


def test_candidates_and_qrels():
    line = '{"query_id": "q", "doc_id": "d", "first_stage_score": 1, "first_stage_rank": 3, "relevance": 2}'
    assert rows(line, "candidates") == [Candidate("q", "d", 1.0, 3)]
    assert rows(line, "qrels") == [Qrel("q", "d", 2)]
    assert rows('{"query_id": "q", "doc_id": "d"}', "candidates") == [Candidate("q", "d")]
    assert rows('{"query_id": "q", "doc_id": "d", "score": 3.5, "rank": 1}', "candidates") == [
        Candidate("q", "d", 3.5, 1)
    ]
    assert rows('{"query-id": "q", "corpus-id": "d", "score": 1}', "qrels") == [Qrel("q", "d", 1)]


@pytest.mark.parametrize(
    ("record", "table", "hint"),
    [
        ({"query_id": "q", "text": "t"}, "documents", "--as queries"),
        ({"doc_id": "d", "text": "t"}, "queries", "--as documents"),
        ({"query_id": "q", "doc_id": "d", "relevance": 1}, "documents", "--as candidates or --as qrels"),
        ({"query_id": "q", "doc_id": "d", "score": 1}, "queries", "--as candidates or --as qrels"),
    ],
)
def test_a_record_of_another_table_is_a_reject_that_names_it(record, table, hint):
    [reject] = rows(json.dumps(record), table)
    assert hint in reject.detail


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({}, SourceFault.FIELD_MISSING),
        ({"relevance": "1"}, SourceFault.FIELD_INVALID),
        ({"relevance": 1.5}, SourceFault.FIELD_INVALID),
        ({"relevance": 2**31}, SourceFault.FIELD_INVALID),
        ({"relevance": 10**400}, SourceFault.FIELD_INVALID),
        ({"relevance": float("nan")}, SourceFault.FIELD_INVALID),
        ({"relevance": True}, SourceFault.FIELD_INVALID),
    ],
)
def test_relevance_is_a_32_bit_integer(record, fault):
    [result] = rows(json.dumps({"query_id": "q", "doc_id": "d", **record}), "qrels")
    assert result.fault is fault


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_any_bytes_give_a_row_or_a_reject_for_each_line(lines):
    content = b"\n".join(lines)
    expected = sum(1 for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip())
    assert len(rows(content, max_line_bytes=16)) == expected
