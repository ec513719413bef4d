"""Names made from content tell contents apart and nothing else."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from lakerank.fingerprint import content_hash, fingerprint, sequence_hash

contents = st.tuples(st.none() | st.text(max_size=5), st.none() | st.binary(max_size=5))
lines = st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3)), max_size=4)


@given(contents, contents)
def test_contents_have_one_hash_exactly_when_they_are_equal(first, second):
    assert (content_hash(*first) == content_hash(*second)) == (first == second)


def test_stored_bytes_and_their_text_are_one_content():
    assert content_hash("é", None) == content_hash("é".encode(), None)
    assert content_hash("é", None) != content_hash("é".encode("latin-1"), None)


@given(lines, lines)
def test_sequences_do_not_run_together(first, second):
    assert (sequence_hash(first) == sequence_hash(second)) == (first == second)


@given(st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=5))
def test_the_order_of_settings_does_not_matter(settings):
    backwards = dict(reversed(settings.items()))
    assert fingerprint(settings) == fingerprint(backwards)
    assert len(fingerprint(settings)) == 16
    assert json.dumps(settings, sort_keys=True) == json.dumps(backwards, sort_keys=True)
