"""Means, intervals and tests come out of sums that may be added up in any order."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from lakerank.evaluation.metrics.bootstrap import FEWEST_QUERIES, query_hashes, weights
from lakerank.evaluation.metrics.measures import CHANCE, NAMES
from lakerank.evaluation.metrics.sums import Figures, Sums


def figures(before, after, against=None):
    """The same value for every measure of a query."""

    def table(values, names):
        return np.tile(np.asarray(values, np.float64)[:, None], (1, len(names)))

    other = None if against is None else table(against, NAMES)
    return Figures(table(before, NAMES), table(after, NAMES), table(before, CHANCE), other)


def hashes(queries):
    return query_hashes([f"q{number}" for number in range(queries)])


def sums(before, after, against=None):
    return Sums.over(figures(before, after, against), hashes(len(before)))


def test_the_interval_is_near_the_normal_one():
    generator = np.random.default_rng(3)
    before, after = generator.random(400), generator.random(400) + 0.1
    found = sums(before, after).differences(1)["AP"]
    spread = 1.96 * np.std(after - before) / math.sqrt(400)
    assert found.mean == pytest.approx(np.mean(after - before))
    assert found.low == pytest.approx(found.mean - spread, abs=0.006)
    assert found.high == pytest.approx(found.mean + spread, abs=0.006)


def test_p_is_that_of_a_paired_t_test():
    generator = np.random.default_rng(5)
    before, after, other = generator.random((3, 60))
    found = sums(before, after, other)
    assert found.differences(1)["AP"].p == pytest.approx(stats.ttest_rel(after, before).pvalue)
    assert found.differences(2)["AP"].p == pytest.approx(stats.ttest_rel(after, other).pvalue)
    assert sums(before, before).differences(1)["AP"].p == 1.0
    assert sums(before, before + 0.5).differences(1)["AP"].p == 0.0


def test_parts_add_up_to_the_whole():
    generator = np.random.default_rng(1)
    before, after, other = generator.random((3, 50))
    every = figures(before, after, other)
    parts = [
        Sums.over(every.of(np.arange(start, 50, 2)), hashes(50)[np.arange(start, 50, 2)]).packed() for start in (0, 1)
    ]
    whole = Sums.over(every, hashes(50)).packed()
    np.testing.assert_allclose(parts[0] + parts[1], whole)
    assert Sums.unpacked(parts[0] + parts[1]).means(2)["AP"] == pytest.approx(other.mean())


def test_weights_are_poisson_and_the_same_wherever_a_query_is():
    drawn = weights(hashes(3000))
    assert drawn.mean() == pytest.approx(1, abs=0.005)
    assert drawn.var() == pytest.approx(1, abs=0.01)
    correlation = np.corrcoef(drawn[:, :40].T)
    assert np.abs(correlation[~np.eye(40, dtype=bool)]).max() < 0.15
    np.testing.assert_array_equal(drawn[:, [7]], weights(query_hashes(["q7"])))


def test_few_queries_give_no_interval():
    few, enough = (sums([0.0] * count, [1.0] * count) for count in (FEWEST_QUERIES - 1, FEWEST_QUERIES))
    assert (few.differences(1)["AP"].low, few.differences(1)["AP"].p) == (None, None)
    assert few.intervals(0)["AP"] == (None, None)
    assert (enough.differences(1)["AP"].low, enough.differences(1)["AP"].high) == (1.0, 1.0)
