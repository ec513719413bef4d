"""TREC's lines: every one is a judgement, a candidate or a reject with its number."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakerank.ingest.lines import RunLine, numbered_lines, run_lines, split_lines, trec_qrels, tsv_qrels
from lakerank.ingest.tables import SourceFault, SourceReject
from lakerank.records import Qrel


def lines(content: bytes, separator=None):
    return split_lines("f", numbered_lines(io.BytesIO(content), 2**16), separator)


def test_a_line_of_names_is_passed_over_only_at_the_top():
    result = list(tsv_qrels("f", lines(b"query-id\tcorpus-id\tscore\nq\td\t1\nquery-id\tcorpus-id\tscore\n", "\t"), ""))
    assert result[0] == Qrel("q", "d", 1)
    assert isinstance(result[1], SourceReject)
    assert (result[1].line, len(result)) == (3, 2)


def test_a_file_without_names_loses_no_line():
    assert list(tsv_qrels("f", lines(b"q\td\t1\n", "\t"), "x/")) == [Qrel("x/q", "x/d", 1)]


def test_ids_of_tsv_may_hold_spaces():
    assert list(tsv_qrels("f", lines(b"a b\tc d\t2\n", "\t"), "")) == [Qrel("a b", "c d", 2)]


def test_trec_qrels_have_an_iteration_and_may_have_more():
    assert list(trec_qrels("f", lines(b"q 0 d -1 7\n"), "")) == [Qrel("q", "d", -1)]


@pytest.mark.parametrize("field", ["x", "1.5", "nan", "inf", "3000000000"])
def test_relevance_is_a_32_bit_integer(field):
    [reject] = trec_qrels("f", lines(f"q 0 d {field}\n".encode()), "")
    assert (reject.fault, reject.line) == (SourceFault.FIELD_INVALID, 1)


FIELDS = st.lists(st.sampled_from([b"q1", b"Q0", b"d 1", b"1", b"0.5", b"nan", b"\xff", b"\t", b""]), max_size=8)


@given(st.lists(FIELDS.map(b" ".join), max_size=6))
def test_every_line_that_is_not_blank_gives_one_result(rows):
    content = b"\n".join(rows)
    expected = sum(1 for row in rows if row.strip())
    for read in (trec_qrels("f", lines(content), ""), run_lines("f", lines(content))):
        result = list(read)
        assert len(result) == expected
        assert all(isinstance(row, Qrel | RunLine | SourceReject) for row in result)
