"""How alike two orders of a list are, and how a sample that could not be read whole is reported."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from lakerank_evaluation.position_bias import _changes
from lakerank_evaluation.report.terminal import _position_bias


@given(st.integers(2, 60).flatmap(lambda length: st.permutations(range(length))))
def test_the_same_order_is_exactly_1_and_its_reverse_exactly_minus_1(order):
    given, other = {"q": [*map(str, range(len(order)))]}, {"q": [*map(str, order)]}
    assert _changes(given, given)["kendall_tau"] == 1
    assert _changes(given, {"q": given["q"][::-1]})["kendall_tau"] == -1
    expected = kendalltau(np.arange(len(order)), np.argsort(order)).statistic
    assert _changes(given, other)["kendall_tau"] == pytest.approx(expected)


@pytest.mark.parametrize(("sampled", "said"), [(2, ""), (3, "; nothing can be read of 1 other of the sample")])
def test_lists_that_cannot_be_read_are_named(sampled, said):
    bias = {"sampled": sampled, "lists": 2, "judged": 1, "given": {}, "reversed": {}, "shuffled": {}}
    (text,) = _position_bias(SimpleNamespace(inputs=SimpleNamespace(position_bias=bias)))
    assert text.splitlines()[0] == f"Position bias of 2 lists, 1 of them judged{said}:"
