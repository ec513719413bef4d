"""Run files: every line that is not blank is an item or a reject with its number, never a piece of an id."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakerank.candidates.run_files import RunLine, best_items, read_run
from lakerank.ingest.rejects import SourceReject
from lakerank.lake.storage import Storage


@pytest.fixture(scope="module")
def parse(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], list[RunLine | SourceReject]]:
    file = tmp_path_factory.mktemp("run") / "run.txt"

    def parse(content: bytes) -> list[RunLine | SourceReject]:
        file.write_bytes(content)
        return list(read_run(Storage(), str(file)))

    return parse


@pytest.mark.parametrize(
    "line",
    [
        b"q1 Q0 d1 1 9.5 tag",
        b"  q1   Q0  d1\t1 9.5 tag\r\n",
        b"\xef\xbb\xbfq1\tQ0\td1\t1\t9.5\ttag\r\n",
        b"q1\tQ0\td1\t1\t+9.5E0\tmy tag\n",
        b"q1 \t Q0 \t d1 \t 1 \t 9.5 \t tag\n",
    ],
)
def test_a_line_may_have_any_white_space_a_mark_and_windows_ends(parse, line):
    assert parse(line) == [RunLine("q1", "d1", 9.5, 1)]


def test_ids_may_hold_spaces_where_fields_are_apart_by_tabs(parse):
    lines = b"q one\tQ0\tmy document 2\t1\t9.5\ttag\nq one\tQ0\tmy\xc2\xa0page\t2\t9\ttag\n"
    assert parse(lines) == [RunLine("q one", "my document 2", 9.5, 1), RunLine("q one", "my\xa0page", 9.0, 2)]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("q1 Q0 my document 2 1 9.5 tag", "field_invalid"),
        ("q1 Q0 my 2 1 9.5 tag", "field_invalid"),
        ("q1\tQ0\tmy 2\t1\t9.5", "field_missing"),
        ("q1 Q0 d1 1 9.5", "field_missing"),
        ("q1 Q0 d1 1 9.5 uniir 0", "field_invalid"),
        ("q1\tQ0\t\t1\t9.5\ttag", "field_invalid"),
        ("q1 Q0 d1 first 9.5 tag", "field_invalid"),
        ("q1 Q0 d1 1 nan tag", "field_invalid"),
        ("q1 Q0 d1 1 -inf tag", "field_invalid"),
        ("q1 Q0 d1 1 1e999 tag", "field_invalid"),
        ("q1 Q0 d1 1 1_000 tag", "field_invalid"),
    ],
)
def test_what_could_be_read_in_two_ways_is_a_reject(parse, line, code):
    [reject] = parse(f"\n{line}\n".encode())
    assert isinstance(reject, SourceReject)
    assert (reject.path, reject.fault, reject.line) == ("run.txt", code, 2)


FIELDS = st.lists(st.sampled_from([b"q1", b"Q0", b"d 1", b"1", b"0.5", b"nan", b"\xff", b"\t", b""]), max_size=8)


@given(st.lists(FIELDS.map(b" ".join), max_size=6))
def test_every_line_that_is_not_blank_gives_one_result(parse, rows):
    assert len(parse(b"\n".join(rows))) == sum(1 for row in rows if row.strip())


def test_the_best_of_a_query_are_by_score_each_document_once():
    lines = [
        RunLine("q", doc_id, score, n) for n, (doc_id, score) in enumerate([("a", 1), ("b", 2), ("a", 3), ("c", 2)])
    ]
    assert [(line.doc_id, line.score) for line in best_items(lines, 3)] == [("a", 3), ("b", 2), ("c", 2)]
    assert [line.doc_id for line in best_items(lines, 1)] == ["a"]
