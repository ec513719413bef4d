"""The guarantee of a cascade: on synthetic score pairs it is kept at the stated rate, whatever the two scorers are."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakerank.plan.guarantee import MARGINS, Promise, gaps, recalls, shift_p_value
from lakerank.ranking import list_order, ranks

QUERIES, SEEDS = 3000, 400


def good(random, size):
    """The strong scorer's logits are the cheap one's and a little noise."""
    cheap = random.normal(size=size)
    return cheap, cheap + 0.5 * random.normal(size=size)


def useless(random, size):
    return random.normal(size=size), random.normal(size=size)


def tied(random, size):
    """The cheap scorer has three values, and the strong one ten."""
    cheap, strong = good(random, size)
    return np.round(np.clip(cheap, -1, 1)), np.round(2 * strong) / 2


def sometimes_blind(random, size):
    """For one query in twenty the cheap scorer knows nothing: most lose nothing, and a few nearly all."""
    cheap, strong = good(random, size)
    blind = random.random(size[0]) < 0.05
    cheap[blind] = random.normal(size=(blind.sum(), size[1]))
    return cheap, strong


def recalls_of(scorers, documents: int, of_top: int, seed: int = 0) -> np.ndarray:
    """Recalls (Q, R) of as many queries, each with up to so many documents, as a stage computes them."""
    random = np.random.default_rng(seed)
    cheap, strong = (scores.astype(np.float32) for scores in scorers(random, (QUERIES, documents)))
    listed = random.integers(1, documents + 1, QUERIES) if documents < 15 else np.full(QUERIES, documents)
    query = np.repeat(np.arange(QUERIES), listed)
    cheap, strong = (scores[np.arange(documents) < listed[:, None]] for scores in (cheap, strong))
    order = list_order(query, cheap, np.arange(len(query)))
    gap = np.empty(len(query))
    gap[order] = gaps(query[order], cheap[order], of_top)
    order = list_order(query, strong, np.arange(len(query)))
    best = order[ranks(np.diff(query[order], prepend=-1) != 0) <= of_top]
    return recalls(query[best], gap[best])


def most_breaches(rate: float) -> int:
    """The number of breaches in SEEDS samples that a rate exceeds with a probability of one in ten thousand."""
    tail, breaches = 1.0, -1
    while tail > 1e-4:
        breaches += 1
        tail -= math.comb(SEEDS, breaches) * rate**breaches * (1 - rate) ** (SEEDS - breaches)
    return breaches


@pytest.mark.parametrize(
    ("scorers", "documents", "promise"),
    [
        (good, 40, Promise(5, 0.9, 0.8)),
        (good, 40, Promise(5, 0.95, 0.9)),
        (useless, 40, Promise(5, 0.9, 0.8)),
        (tied, 40, Promise(5, 0.9, 0.8)),
        (sometimes_blind, 40, Promise(5, 0.95, 0.8)),
        (good, 8, Promise(5, 0.9, 0.8)),
        (good, 40, Promise(1, 0.9, 0.8)),
    ],
)
def test_over_many_samples_the_promise_is_kept_at_the_stated_rate(scorers, documents, promise):
    population = recalls_of(scorers, documents, promise.of_top)
    mean, random = population.mean(axis=0), np.random.default_rng(1)
    rules = [
        promise.boldest_rule(population[random.permutation(QUERIES)[:sample]])
        for sample in (promise.least_queries, 300)
        for _ in range(SEEDS // 2)
    ]
    breaches = sum(mean[rule] < promise.recall for rule in rules if rule >= 0)
    assert breaches <= most_breaches(1 - promise.confidence)
    assert max(rules) >= 0, "a rule is found"


@given(
    low=st.floats(0, 0.9), mean=st.floats(0.5, 0.99), size=st.integers(1, 200), confidence=st.floats(0.5, 0.99)
)  # fmt: skip
def test_a_mean_that_is_no_better_than_promised_passes_no_oftener_than_said(low, mean, size, confidence):
    """Exactly, for queries with one of two recalls, whose mean is the promised one: summed over how many are lower."""
    low = min(low, mean - 0.01)
    share, promise = (1 - mean) / (1 - low), Promise(10, mean, confidence)
    passed = 0.0
    for lows in range(size + 1):
        sample = np.where(np.arange(size) < lows, low, 1.0)[:, None]
        if promise.boldest_rule(sample) < 0:
            break  # with more of the lower recall it passes still less
        passed += math.comb(size, lows) * share**lows * (1 - share) ** (size - lows)
    assert passed <= (1 - confidence) * (1 + 1e-6)


@given(st.floats(0.5, 0.99), st.floats(0.5, 0.99))
def test_the_least_sample_is_the_smallest_that_can_pass(recall, confidence):
    promise = Promise(10, recall, confidence)
    least = promise.least_queries
    assert promise.boldest_rule(np.ones((least, 1))) == 0
    assert promise.boldest_rule(np.ones((least - 1, 1))) == -1
    assert promise.sample_size(least - 1) == least - 1, "a run of fewer queries is read whole"
    assert promise.sample_size(20 * least) == 2 * least
    assert promise.sample_size(10**9) == 4 * least


def test_rules_are_tested_from_the_widest_margin_and_no_further_than_the_first_that_fails():
    full, poor = np.ones(200), np.full(200, 0.5)
    promise = Promise(10, 0.98, 0.95)
    assert promise.boldest_rule(np.stack([full, full, poor, full], axis=1)) == 1
    assert promise.boldest_rule(np.stack([poor, full], axis=1)) == -1
    assert (np.diff(MARGINS) < 0).all()
    assert MARGINS[-1] == 0


@given(st.lists(st.sampled_from([0.0, 0.5, 0.9, 1.0]), min_size=5, max_size=300), st.floats(0.5, 0.99))
def test_the_lower_bound_is_the_most_that_could_have_been_promised(sample, confidence):
    values = np.array(sample)
    bound = Promise(10, 0.9, confidence).lower_bound(values)
    assert 0 <= bound <= 1
    for recall, passes in ((bound - 1e-6, True), (bound + 1e-6, False)):
        if 0 < recall < 1:
            assert (Promise(10, recall, confidence).boldest_rule(values[:, None]) == 0) is passes


def test_gaps_are_below_the_last_of_the_top_and_a_short_list_is_read_whole():
    query = np.array([0, 0, 0, 0, 3, 3], np.int64)
    logit = np.array([5, 4, 4, 1, 2, -7], np.float32)
    assert gaps(query, logit, 2).tolist() == [0, 0, 0, 3, 0, 0]
    assert gaps(query, logit, 1).tolist() == [0, 1, 1, 4, 0, 9]
    assert gaps(query[:0], logit[:0], 2).tolist() == []


def test_recall_is_the_share_of_the_best_documents_that_a_margin_reaches():
    found = recalls(np.array([3, 3, 3, 3, 7]), np.array([0.0, 0.9, 5.0, 2.0, 2.0]))
    by_margin = dict(zip(MARGINS.tolist(), found.T.tolist(), strict=True))
    assert by_margin[0.0] == [0.25, 0]
    assert by_margin[1.0] == [0.5, 0]
    assert by_margin[2.0] == [0.75, 1], "a gap as wide as the margin is read"
    assert by_margin[8.0] == [1, 1]
    assert recalls(np.zeros(0, np.int64), np.zeros(0)).shape == (0, len(MARGINS))


def test_a_shift_is_found_and_no_shift_is_not():
    from scipy.stats import ks_2samp

    random = np.random.default_rng(0)
    for shift in (0.0, 0.1, 1.0):
        before, now = random.normal(size=300), random.normal(size=500) + shift
        exact = ks_2samp(before, now).pvalue
        assert exact / 2 < shift_p_value(before, now) < max(2 * exact, exact + 0.2)
    assert shift_p_value(np.zeros(200), np.zeros(300)) == 1
    same = [shift_p_value(*random.integers(0, 5, (2, 200)).astype(float)) for _ in range(500)]
    assert np.mean(np.array(same) < 0.05) < 0.05, "ties make it careful"
