"""The bootstrap interval: repeatable, about right, and silent when there is too little to go by."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lakerank.evaluation.intervals import FEWEST_QUERIES, paired_differences


def column(values):
    return np.asarray(values, np.float64)[:, None]


def test_the_interval_is_near_the_normal_one():
    generator = np.random.default_rng(3)
    before, after = generator.random(400), generator.random(400) + 0.1
    [found] = paired_differences(column(before), column(after))
    spread = 1.96 * np.std(after - before) / math.sqrt(400)
    assert found.mean == pytest.approx(np.mean(after - before))
    assert found.low == pytest.approx(found.mean - spread, abs=0.006)
    assert found.high == pytest.approx(found.mean + spread, abs=0.006)


def test_the_same_figures_give_the_same_interval():
    values = np.random.default_rng(1).random((50, 2, 3))
    assert paired_differences(values[:, 0], values[:, 1]) == paired_differences(values[:, 0], values[:, 1])


def test_few_queries_give_no_interval():
    [few] = paired_differences(column([0.0] * (FEWEST_QUERIES - 1)), column([1.0] * (FEWEST_QUERIES - 1)))
    [enough] = paired_differences(column([0.0] * FEWEST_QUERIES), column([1.0] * FEWEST_QUERIES))
    assert (few.mean, few.low, few.high) == (1.0, None, None)
    assert (enough.low, enough.high) == (1.0, 1.0)
