"""Costs estimated from sizes alone, and bins of even cost."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lakerank.cost import TEMPLATE_TOKENS, VISUAL_TOKEN_COST, Sizing, even_bins, input_cost

SIZING = Sizing(min_pixels=3136, max_pixels=602112, max_text_tokens=100)


def cost(text_bytes: int, width: int = 0, height: int = 0) -> int:
    arrays = (np.array([value]) for value in (text_bytes, width, height))
    return int(input_cost(*arrays, SIZING)[0])


def test_text_costs_by_the_byte_up_to_the_limit():
    assert cost(40) - cost(0) == 10
    assert cost(10_000) == cost(400)


def test_an_image_costs_its_visual_tokens_between_the_pixel_limits():
    assert cost(0, 28 * 10, 28 * 4) == TEMPLATE_TOKENS + 40 * VISUAL_TOKEN_COST
    assert cost(0, 4000, 6000) == TEMPLATE_TOKENS + 768 * VISUAL_TOKEN_COST
    assert cost(0, 1, 1) == TEMPLATE_TOKENS + 4 * VISUAL_TOKEN_COST


@given(st.lists(st.integers(1, 100), min_size=1, max_size=200), st.integers(1, 500))
def test_bins_are_consecutive_and_about_the_target(costs, target):
    bins = even_bins(costs, target)
    assert bins[0] == 0
    assert set(np.diff(bins)) <= {0, 1}
    totals = np.bincount(bins, weights=costs)
    assert (totals <= target + max(costs) / 2).all() or (totals.max() in costs)
    assert (totals[:-1] >= min(target - max(costs) / 2, totals.max())).all()
