"""What an audit lets through and what it stops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakerank.audit import (
    HISTOGRAM_EDGES,
    Bounds,
    Check,
    Findings,
    GoldenQuality,
    LastRun,
    LostPairs,
    RunCounts,
    audit,
    kolmogorov_smirnov,
    labels_alike,
    population_stability,
)

BINS = len(HISTOGRAM_EDGES) - 1


def histogram(mean: float, count: int = 10_000) -> tuple[int, ...]:
    drawn = np.random.default_rng(0).normal(mean, 1, count)
    return tuple(np.histogram(drawn, HISTOGRAM_EDGES)[0].tolist())


GOOD = RunCounts(
    candidates=100, ranked=95, beyond_depth=2, rejected=3, unscored=0, queries=10, unranked_queries=1, truncated=19,
    histogram=histogram(0),
)  # fmt: skip


def failed(counts: RunCounts = GOOD, bounds: Bounds | None = None, **findings: object) -> list[str]:
    return [check.name for check in audit(counts, bounds or Bounds(), Findings(**findings)) if check.passed is False]


def check_of(name: str, counts: RunCounts = GOOD, bounds: Bounds | None = None, **findings: object) -> Check:
    (found,) = [check for check in audit(counts, bounds or Bounds(), Findings(**findings)) if check.name == name]
    return found


EVERYTHING = {
    "rejects": {"empty_query": 3},
    "golden_errors": {("q", "d"): 0.0},
    "golden_quality": GoldenQuality(9, 0.5, 0.0),
    "stages": [(1, 10)],
    "lost_pairs": LostPairs("before", 1, 10),
}


def test_what_has_no_bound_is_not_checked_and_never_said_to_have_passed():
    checks = audit(GOOD, Bounds(allow_empty=True), Findings(**EVERYTHING, last=last()))
    unbounded = {check.name: check for check in checks if check.bound is None}
    assert len(unbounded) == 12
    for check in unbounded.values():
        assert (check.passed, check.verdict) == (None, "not checked")
        assert check.as_dict()["verdict"] == "not checked"
        assert check.value is not None, "its value is told all the same"
    assert {check.verdict for check in checks if check.bound is not None} == {"passed"}


def test_the_first_run_has_nothing_to_be_compared_with():
    bounds = Bounds(
        max_lost_queries=0.0, max_lost_pairs=0.0, max_score_drift=0.0, max_score_ks=0.0, max_churn=0.0,
        max_ndcg_drop=0.0,
    )  # fmt: skip
    checks = audit(GOOD, bounds, Findings(golden_quality=GoldenQuality(9, 0.5, None)))
    unknown = [check for check in checks if check.value is None]
    assert len(unknown) == 6
    for check in unknown:
        assert check.verdict == "not checked"
        assert check.bound == 0.0
        assert "no published run to compare with" in check.detail


def test_a_run_that_ranks_nothing_fails_unless_the_config_says_otherwise():
    nothing = replace(GOOD, ranked=0, beyond_depth=0, rejected=100, histogram=(0,) * BINS)
    no_candidates = replace(nothing, candidates=0, rejected=0, queries=0, unranked_queries=0)
    for counts, detail in ((nothing, "0 of 100 candidates are ranked"), (no_candidates, "no candidates")):
        assert failed(counts) == ["nothing ranked"]
        assert check_of("nothing ranked", counts).detail == detail
        assert failed(counts, Bounds(allow_empty=True)) == []
    assert failed(replace(nothing, ranked=1, rejected=99)) == []


@pytest.mark.parametrize(("ranked_too", "fails"), [(10, False), (8, False), (7, True), (0, True)])
def test_queries_of_the_last_run_may_not_be_lost_beyond_the_bound(ranked_too, fails):
    before = LastRun("before", histogram(0), 10, ranked_too, 0.0)
    assert failed(bounds=Bounds(max_lost_queries=0.2), last=before) == ["queries lost"] * fails
    detail = check_of("queries lost", bounds=Bounds(max_lost_queries=0.2), last=before).detail
    assert detail == f"{10 - ranked_too} of 10 that run before ranked have nothing ranked here"


@pytest.mark.parametrize(("lost", "fails"), [(0, False), (20, False), (21, True), (100, True)])
def test_pairs_of_the_last_run_may_not_be_lost_beyond_the_bound(lost, fails):
    found = {"last": last(), "lost_pairs": LostPairs("before", lost, 100)}
    assert failed(bounds=Bounds(max_lost_pairs=0.2), **found) == ["pairs lost"] * fails


def test_pairs_that_are_not_known_are_not_checked():
    assert check_of("pairs lost", bounds=Bounds(max_lost_pairs=0.2), last=last()).verdict == "not checked"


def test_a_last_run_without_all_of_its_logits_is_not_compared():
    cut = replace(last(9.0), histogram=None)
    for name in ("score drift (PSI)", "score drift (KS)"):
        check = check_of(name, bounds=Bounds(max_score_drift=0.0, max_score_ks=0.0), last=cut)
        assert check.verdict == "not checked"
        assert "beyond" in check.detail


def test_churn_names_the_depth_that_it_compares():
    assert check_of("top-5 churn", bounds=Bounds(max_churn=0.5), last=replace(last(), top=5)).verdict == "passed"


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


def last(mean: float = 0.0, churn: float = 0.0, queries: int = 5) -> LastRun:
    return LastRun("before", histogram(mean), 5, queries, churn)


def test_rejects_are_bounded_by_their_reason_too():
    bounds = Bounds(max_reject_rates={"missing_document": 0.01, "image_undecodable": 0.0})
    assert failed(bounds=bounds, rejects={"missing_document": 1, "empty_query": 2}) == []
    assert failed(bounds=bounds, rejects={"missing_document": 2}) == ["reject rate, missing_document"]
    names = [check.name for check in audit(GOOD, bounds, Findings({"empty_query": 3}))]
    assert {"reject rate, empty_query", "reject rate, missing_document", "reject rate, image_undecodable"} <= set(names)


def test_drift_is_seen_and_bounded():
    bounds = Bounds(max_score_drift=0.25, max_score_ks=0.1)
    assert failed(bounds=bounds, last=last(0.05)) == []
    assert failed(bounds=bounds, last=last(2.0)) == ["score drift (PSI)", "score drift (KS)"]
    nothing = replace(last(), histogram=(0,) * BINS)
    assert failed(bounds=bounds, last=nothing) == [], "a run that ranked nothing is nothing to drift from"


def test_drift_is_told_with_its_numbers():
    detail = check_of("score drift (PSI)", last=last(2.0)).detail
    assert "run before; quartiles 1.5/2/2.75 → -0.5/0/0.75" in detail


def test_churn_may_reach_its_bound_but_not_pass_it():
    bounds = Bounds(max_churn=0.3)
    assert failed(bounds=bounds, last=last(churn=0.3)) == []
    assert failed(bounds=bounds, last=last(churn=0.31)) == ["top-10 churn"]
    assert failed(bounds=bounds, last=last(churn=1.0, queries=0)) == [], "no query to compare"


def test_golden_queries_may_not_get_worse_by_more_than_the_bound():
    bounds = Bounds(max_ndcg_drop=0.01)
    assert failed(bounds=bounds, golden_quality=GoldenQuality(9, 0.5, 0.01)) == []
    assert failed(bounds=bounds, golden_quality=GoldenQuality(9, 0.5, 0.011)) == ["golden queries, drop of nDCG@10"]
    assert failed(bounds=bounds, golden_quality=GoldenQuality(9, 0.5, -0.2)) == [], "better is never too much"
    assert failed(bounds=bounds, golden_quality=GoldenQuality(9, 0.0, None)) == [], "the first run has nothing to hold"


@given(
    st.lists(st.integers(-190, 190), min_size=1, max_size=20), st.lists(st.integers(-190, 190), min_size=1, max_size=20)
)
def test_the_ks_distance_is_that_of_the_values(old, new):
    # Values on the bins' lower edges, so that binning loses nothing.
    samples = [np.sort(np.asarray(values) / 10 // 0.25 * 0.25) for values in (old, new)]
    bins = [np.histogram(sample, HISTOGRAM_EDGES)[0].tolist() for sample in samples]
    below = [np.searchsorted(sample, np.concatenate(samples), side="right") / len(sample) for sample in samples]
    assert kolmogorov_smirnov(*bins) == pytest.approx(np.abs(below[0] - below[1]).max())


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


@pytest.mark.parametrize(
    ("labels", "share"),
    [
        ({"3": 5}, "5 of 5"),
        ({"0": 1200}, "1,200 of 1,200"),
        ({"3": 995, "2": 5}, "995 of 1,000"),
        ({"3": 4}, None),
        ({"3": 98, "2": 2}, None),
        ({"0": 999, "1": 1}, None),
        ({}, None),
    ],
)
def test_labels_that_tell_nothing_apart_are_said(labels: dict[str, int], share: str | None) -> None:
    """Few relevant pairs of many candidates are as it should be; few that are not are not."""
    warning = labels_alike(labels)
    assert warning is None if share is None else warning is not None and warning.startswith(f"{share} ranked pairs")
