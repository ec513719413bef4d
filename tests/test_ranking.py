"""Relevance, labels and ranks against plain definitions."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lakerank.ranking import best_of_groups, labels, ranks, relevance

logits = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=50)


def test_relevance_is_the_published_transform():
    assert relevance(np.array([2.65], np.float32), 2.65).tolist() == [0.5]
    result = relevance(np.array([0.0, 5.0, -7.0], np.float32), 2.65)
    expected = [1 / (1 + math.exp(2.65 - x)) for x in (0.0, 5.0, -7.0)]
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    assert result.dtype == np.float32


@given(logits, st.floats(-10, 10))
def test_relevance_stays_within_bounds_and_keeps_the_order(values, bias):
    given_logits = np.sort(np.array(values, np.float32))
    result = relevance(given_logits, bias)
    assert ((result >= 0) & (result <= 1)).all()
    assert (np.diff(result) >= 0).all()


def test_a_label_counts_the_thresholds_reached():
    result = labels(np.array([0.0, 0.249, 0.25, 0.5, 0.74, 0.75, 1.0], np.float32), (0.25, 0.5, 0.75))
    assert result.tolist() == [0, 0, 1, 2, 2, 3, 3]
    assert result.dtype == np.int8


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.data())
def test_ranks_count_from_one_within_each_query_whatever_the_batches(sizes, data):
    starts = np.concatenate([[True] + [False] * (size - 1) for size in sizes])
    expected = [rank for size in sizes for rank in range(1, size + 1)]
    cut = data.draw(st.integers(0, len(starts)))
    first = ranks(starts[:cut])
    rest = ranks(starts[cut:], carried=int(first[-1]) if cut else 0)
    assert [*first, *rest] == expected


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 3)), max_size=40), st.integers(1, 5))
def test_the_first_documents_of_each_group_in_each_list_are_kept(pairs, most):
    pairs = sorted(pairs, key=lambda pair: pair[0])
    expected = [group < 0 or pairs[:at].count((query, group)) < most for at, (query, group) in enumerate(pairs)]
    queries, groups = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    assert best_of_groups(queries, groups, most).tolist() == expected
