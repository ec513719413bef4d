"""Means, intervals and tests over queries."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from lakerank_evaluation.metrics.bootstrap import FEWEST_QUERIES, Summary, query_hashes, resampled_sums, weights
from lakerank_evaluation.metrics.measures import NAMES, RANDOM_BASELINE, QueryFigures


def hashes(queries):
    return query_hashes([f"q{number}" for number in range(queries)])


def summary(before, after, baseline=None):
    """Of queries whose measures all have the same value."""

    def table(values, names):
        return np.tile(np.asarray(values, np.float64)[:, None], (1, len(names)))

    values = {"reranked": after, "first_stage": before} | ({} if baseline is None else {"baseline": baseline})
    lists = {name: table(of_list, NAMES) for name, of_list in values.items()}
    return Summary(QueryFigures(lists, table(before, RANDOM_BASELINE)), hashes(len(before)))


def test_means_are_those_of_each_list():
    generator = np.random.default_rng(1)
    before, after, other = generator.random((3, 50))
    result = summary(before, after, other)
    for name, values in (("first_stage", before), ("reranked", after), ("baseline", other)):
        assert name in result
        assert result.means(name)["AP"] == pytest.approx(values.mean())
        sums = resampled_sums(hashes(50), values[:, None])
        np.testing.assert_allclose(result.resampled_means(name)[:, 0], sums[:, 0] / sums[:, 1])
    assert result.random_means()["nDCG@10"] == pytest.approx(before.mean())
    assert "baseline" not in summary(before, after)


def test_the_interval_is_near_the_normal_one():
    generator = np.random.default_rng(3)
    before, after = generator.random(400), generator.random(400) + 0.1
    result = summary(before, after).differences("first_stage")["AP"]
    spread = 1.96 * np.std(after - before) / math.sqrt(400)
    assert result.mean == pytest.approx(np.mean(after - before))
    assert result.low == pytest.approx(result.mean - spread, abs=0.006)
    assert result.high == pytest.approx(result.mean + spread, abs=0.006)


def test_p_is_that_of_a_paired_t_test():
    generator = np.random.default_rng(5)
    before, after, other = generator.random((3, 60))
    result = summary(before, after, other)
    assert result.differences("first_stage")["AP"].p == pytest.approx(stats.ttest_rel(after, before).pvalue)
    assert result.differences("baseline")["AP"].p == pytest.approx(stats.ttest_rel(after, other).pvalue)
    assert summary(before, before).differences("first_stage")["AP"].p == 1.0
    assert summary(before, before + 0.5).differences("first_stage")["AP"].p == 0.0


def test_sums_of_many_queries_are_those_of_their_parts():
    values = np.random.default_rng(2).random((5000, 3))
    parts = [resampled_sums(hashes(5000)[start::2], values[start::2]) for start in (0, 1)]
    np.testing.assert_allclose(sum(parts), resampled_sums(hashes(5000), values))


def test_weights_are_poisson_and_the_same_wherever_a_query_is():
    drawn = weights(hashes(3000))
    assert drawn.mean() == pytest.approx(1, abs=0.005)
    assert drawn.var() == pytest.approx(1, abs=0.01)
    correlation = np.corrcoef(drawn[:, :40].T)
    assert np.abs(correlation[~np.eye(40, dtype=bool)]).max() < 0.15
    np.testing.assert_array_equal(drawn[:, [7]], weights(query_hashes(["q7"])))


def test_few_queries_give_no_interval():
    few, enough = (summary([0.0] * count, [1.0] * count) for count in (FEWEST_QUERIES - 1, FEWEST_QUERIES))
    assert (few.differences("first_stage")["AP"].low, few.differences("first_stage")["AP"].p) == (None, None)
    assert few.intervals("reranked")["AP"] == (None, None)
    assert [enough.intervals(name)["AP"] for name in ("first_stage", "reranked")] == [(0.0, 0.0), (1.0, 1.0)]
    difference = enough.differences("first_stage")["AP"]
    assert (difference.low, difference.high) == (1.0, 1.0)
