"""What an audit lets through and what it stops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakerank.audit import HISTOGRAM_EDGES, Bounds, RunCounts, audit, population_stability

BINS = len(HISTOGRAM_EDGES) - 1


def histogram(mean: float, count: int = 10_000) -> tuple[int, ...]:
    drawn = np.random.default_rng(0).normal(mean, 1, count)
    return tuple(np.histogram(drawn, HISTOGRAM_EDGES)[0].tolist())


GOOD = RunCounts(
    candidates=100, ranked=95, beyond_depth=2, rejected=3, unscored=0, queries=10, unranked_queries=1, truncated=19,
    histogram=histogram(0),
)  # fmt: skip


def failed(counts: RunCounts = GOOD, bounds: Bounds | None = None, **more: object) -> list[str]:
    return [check.name for check in audit(counts, bounds or Bounds(), **more) if not check.passed]


def test_without_bounds_only_lost_candidates_stop_a_run():
    assert failed() == []
    assert failed(replace(GOOD, ranked=94)) == ["lost candidates"]
    assert failed(replace(GOOD, ranked=96)) == ["lost candidates"], "nor may one be in both"
    assert failed(replace(GOOD, unscored=1)) == ["lost candidates"]


@pytest.mark.parametrize(
    ("bound", "at", "below", "name"),
    [
        ("max_reject_rate", 0.03, 0.029, "reject rate"),
        ("max_unranked_queries", 0.1, 0.09, "queries with nothing ranked"),
        ("max_truncated", 0.2, 0.19, "truncated pairs"),
    ],
)
def test_a_share_may_reach_its_bound_but_not_pass_it(bound, at, below, name):
    assert failed(bounds=Bounds(**{bound: at})) == []
    assert failed(bounds=Bounds(**{bound: below})) == [name]


def test_drift_is_seen_and_bounded():
    bounds = Bounds(max_score_drift=0.25)
    assert failed(bounds=bounds, last_histogram=histogram(0.05)) == []
    assert failed(bounds=bounds, last_histogram=histogram(2.0)) == ["score drift (PSI)"]
    assert failed(bounds=bounds, last_histogram=(0,) * BINS) == [], "a run that ranked nothing is nothing to drift from"


@given(st.lists(st.integers(0, 1000), min_size=BINS, max_size=BINS).filter(any), st.integers(1, 7))
def test_the_stability_index_is_nought_for_one_shape_and_never_negative(counts, times):
    assert population_stability(counts, counts) == pytest.approx(0, abs=1e-12)
    assert population_stability(counts, list(reversed(counts))) >= 0
    assert population_stability(counts, [times * count for count in counts]) < 0.5


def test_golden_pairs_must_be_there_and_within_the_tolerance():
    bounds = Bounds(golden_tolerance=0.01)
    name = "golden pairs, |logit - expected|"
    assert failed(bounds=bounds, golden_errors={("q", "d"): 0.01}) == []
    assert failed(bounds=bounds, golden_errors={("q", "d"): 0.0, ("q", "e"): 0.02}) == [name]
    assert failed(bounds=bounds, golden_errors={("q", "d"): 0.0, ("q", "e"): None}) == [name]
