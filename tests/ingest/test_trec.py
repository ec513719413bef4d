"""TREC's lines: every one is a judgement, a candidate or a reject with its number."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakerank.ingest.judgements import qrels
from lakerank.ingest.lines import split_lines, text_lines
from lakerank.ingest.rejects import SourceFault, SourceReject
from lakerank.records import Qrel


def lines(content: bytes, separator=None):
    return split_lines(text_lines("f", io.BytesIO(content), 2**16), separator)


def test_a_line_of_names_is_passed_over_only_at_the_top():
    result = list(qrels("f", lines(b"query-id\tcorpus-id\tscore\nq\td\t1\nquery-id\tcorpus-id\tscore\n", "\t")))
    assert result[0] == Qrel("q", "d", 1)
    assert isinstance(result[1], SourceReject)
    assert (result[1].line, len(result)) == (3, 2)


def test_a_file_without_names_loses_no_line():
    assert list(qrels("f", lines(b"q\td\t1\n", "\t"))) == [Qrel("q", "d", 1)]


def test_ids_of_tsv_may_hold_spaces():
    assert list(qrels("f", lines(b"a b\tc d\t2\n", "\t"))) == [Qrel("a b", "c d", 2)]


@pytest.mark.parametrize("content", [b"1185868\t0\t16\t1\n597651\t0\t49\t2\n", b"1185868 Q0 16 1\n597651 Q0 49 2\n"])
@pytest.mark.parametrize("heading", [b"", b"query\titeration\tdocument\trelevance\n"])
def test_four_columns_are_trecs(content, heading):
    assert list(qrels("f", lines(heading + content))) == [Qrel("1185868", "16", 1), Qrel("597651", "49", 2)]


@pytest.mark.parametrize("second", ["3\t1", "x\tnote", "d2\t0", "d1\t1"])
def test_four_columns_that_may_be_either_are_not_guessed_at(second):
    content = f"q\td1\t1\t0\nq\t{second}\t1\n".encode()
    assert {row.fault for row in qrels("f", lines(content, "\t"))} == {SourceFault.FIELD_INVALID}


def test_a_line_of_another_number_of_fields_is_a_reject():
    content = b"q\td1\t1\nq\t0\td2\t1\nq\td3\nq\td4\t2\n"
    assert [getattr(row, "fault", row) for row in qrels("f", lines(content, "\t"))] == [
        Qrel("q", "d1", 1),
        SourceFault.FIELD_INVALID,
        SourceFault.FIELD_MISSING,
        Qrel("q", "d4", 2),
    ]


def test_a_first_line_that_cannot_be_read_is_no_heading():
    [reject] = qrels("f", lines(b"q\td\t0.5\n", "\t"))
    assert (reject.fault, reject.line) == (SourceFault.FIELD_INVALID, 1)


def test_ids_with_spaces_stand_between_tabs_or_are_rejects():
    assert list(qrels("f", lines(b"q 1\t0\tmy doc 2\t1\n"))) == [Qrel("q 1", "my doc 2", 1)]
    assert [row.fault for row in qrels("f", lines(b"q 0 d1 1\nq 0 my 2 1\n")) if isinstance(row, SourceReject)] == [
        SourceFault.FIELD_INVALID
    ]
    assert list(qrels("f", lines("q 0 a\u00a0b 1\n".encode()))) == [Qrel("q", "a\u00a0b", 1)]


@pytest.mark.parametrize("field", ["x", "1.5", "nan", "inf", "3000000000"])
def test_relevance_is_a_32_bit_integer(field):
    [reject] = qrels("f", lines(f"q 0 d {field}\n".encode()))
    assert (reject.fault, reject.line) == (SourceFault.FIELD_INVALID, 1)


FIELDS = st.lists(st.sampled_from([b"q1", b"Q0", b"d 1", b"1", b"0.5", b"nan", b"\xff", b"\t", b""]), max_size=8)


@given(st.lists(FIELDS.map(b" ".join), max_size=6))
def test_every_line_that_is_not_blank_gives_one_result(rows):
    content = b"\n".join(rows)
    expected = sum(1 for row in rows if row.strip())
    result = list(qrels("f", lines(content)))
    assert len(result) == expected
    assert all(isinstance(row, Qrel | SourceReject) for row in result)
