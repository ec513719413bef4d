"""Chunks cover a text, are never too long, overlap as asked for, and end where something ends."""

from __future__ import annotations

import itertools
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakerank.errors import ConfigError
from lakerank.ingest.rows import chunk_spans

TEXTS = st.text(st.sampled_from("ab c.\n。 東ก\u0301é!"), max_size=400)


@given(TEXTS, st.integers(4, 60), st.integers(0, 30))
def test_every_character_is_in_a_chunk_and_none_is_too_long(text, size, overlap):
    overlap = min(overlap, size // 2)
    spans = list(chunk_spans(text, size, overlap))
    assert spans[0][0] == 0
    assert spans[-1][1] == len(text)
    assert all(0 < end - start <= size for start, end in spans) or not text
    for (start, end), (following, _) in itertools.pairwise(spans):
        assert start < following <= end
        assert end - following <= overlap


@pytest.mark.parametrize(
    ("text", "size", "chunks"),
    [
        ("one two.\n\nthree four", 13, ["one two.\n\n", "three four"]),
        ("A first one. And a second", 16, ["A first one. ", "And a second"]),
        ("文章一つ目。文章二つ目です。終", 8, ["文章一つ目。", "文章二つ目です。", "終"]),
        ("word " * 4, 12, ["word word ", "word word "]),
        ("x" * 25, 10, ["x" * 10, "x" * 10, "x" * 5]),
        ("short", 10, ["short"]),
        ("", 10, [""]),
    ],
)
def test_chunks_end_where_something_ends(text, size, chunks):
    assert [text[start:end] for start, end in chunk_spans(text, size, 0)] == chunks


def test_an_overlap_begins_at_a_word():
    text = "alpha beta gamma delta epsilon zeta"
    assert [text[start:end] for start, end in chunk_spans(text, 20, 8)][:2] == [
        "alpha beta gamma ",
        "gamma delta epsilon ",
    ]


def test_letters_keep_their_marks():
    text = "e\u0301" * 30
    for start, end in chunk_spans(text, 11, 3):
        assert not unicodedata.combining(text[start])
        assert end == len(text) or not unicodedata.combining(text[end])


def test_long_texts_become_rows_of_a_group(write_files, run_ingest):
    text = "One sentence here. " * 20
    source = write_files(
        {"a.txt": text, "b.jsonl": f'{{"id": "j", "title": "T", "text": "{text}"}}\n', "c.txt": "short"}
    )
    _, table = run_ingest(source, chunk=200, chunk_overlap=40)
    rows = table.select(["doc_id", "group_id", "place", "title", "text"]).to_pylist()
    assert [row["doc_id"] for row in rows][:3] == ["a.txt#chunk=1", "a.txt#chunk=2", "a.txt#chunk=3"]
    assert {row["group_id"] for row in rows} == {"a.txt", "j", None}
    assert rows[1]["place"].startswith("chars=")
    first, last = (int(number) for number in rows[1]["place"].removeprefix("chars=").split("-"))
    assert rows[1]["text"] == text[first:last]
    assert rows[-1] == {"doc_id": "c.txt", "group_id": None, "place": None, "title": None, "text": "short"}


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"chunk": 100, "table": "queries"}, "only documents"),
        ({"chunk": 100, "chunk_overlap": 51}, "at most half"),
        ({"encoding": "latin-99"}, "no encoding"),
    ],
)
def test_options_that_do_not_fit_are_named(write_files, run_ingest, options, fault):
    with pytest.raises(ConfigError, match=fault):
        run_ingest(write_files({"a.txt": "x"}), **options)
