"""Figures from runs: medians, ratios round by round, predictions, drift."""

from __future__ import annotations

import pytest

from lakerank.model.engine.counters import Flops
from lakerank_benchmark.benchmark import matmul_ceiling
from lakerank_benchmark.contenders import Run, whole_pair
from lakerank_benchmark.figures import Absent, drift, figures, predictions
from lakerank_benchmark.request import PUBLISHED, REPRODUCIBLE
from lakerank_benchmark.rounds import Cell, Pace, Sizes, size


def cell(k: int, ours: list[float], published: list[float]) -> Cell:
    """Runs of so many seconds: k pairs of ours, 2 of the published loop's, which need ten times the operations each."""
    runs = {
        REPRODUCIBLE: [
            Run(s, k, tokens=100 * k, padding=25 * k, flops=1e9 * k, stages={"suffix": s / 4}) for s in ours
        ],
        PUBLISHED: [Run(s, 2, tokens=1000, flops=2e10) for s in published],
    }
    return Cell("pages", k, Sizes(1, 2), runs, {"CrossEncoder": "texts alone"})


def test_a_figure_is_of_medians_and_its_ratio_of_rounds() -> None:
    ours, published, absent = figures(cell(10, [1.0, 2.0, 9.0], [4.0, 8.0, 9.0]), ceiling=1e11)
    assert (ours.pairs_per_second, ours.padding, ours.tokens_per_pair) == (5.0, 0.25, 100.0)
    assert ours.ratio == pytest.approx(20.0)  # 10 / 0.5, 5 / 0.25, 1.11 / 0.222
    assert published.ratio == 1.0
    assert ours.gflops == pytest.approx(5.0)
    assert ours.mfu == pytest.approx(0.05)
    assert ours.shares == {"suffix": pytest.approx(0.25)}
    assert absent == Absent("pages", 10, "CrossEncoder", "texts alone")


def test_predictions_start_from_the_smallest_k() -> None:
    cells = cell(25, [2.5], [4.0]), cell(1, [1.0], [4.0])
    later, first = predictions([figure for timed in cells for figure in figures(timed, ceiling=1e11)])
    assert (first.k, later.k) == (1, 25)
    assert first.predicted_ms == first.ms == 1000.0
    assert later.predicted_ms == 1000.0  # as many operations a pair, at the same pace
    assert later.ms == 100.0
    assert later.predicted_ratio == 10.0
    assert later.reproducible_costs is None  # the fast mode did not run


def test_inputs_are_sized_for_both_to_take_as_long() -> None:
    pace = Pace(pair_seconds=2.0, document=1.0, query=0.04)
    assert size("pages", 25, pace, 40.0) == Sizes(documents=10, published_pairs=16)
    assert size("pages", 1, pace, 1.0) == Sizes(1, 1)
    assert size("skewed", 25, pace, 1.0) == Sizes(8, 8)


def test_a_whole_pair_costs_what_its_layers_do() -> None:
    flops = Flops(
        2, token_kv=1, token_rest=2, seen=10, head=7, vision_layers=0, patch_layer=0, patch_seen=0, patch_ends=0
    )
    assert whole_pair(flops, 3) == 2 * (3 * 3 + 6 * 10) + 7


def test_drift_counts_lists_whose_top_changes() -> None:
    exact = {("q", f"d{n:02}"): float(n) for n in range(12)} | {("p", f"d{n:02}"): float(n) for n in range(12)}
    swapped = exact | {("q", "d11"): 9.5, ("q", "d10"): 10.0}  # the order of the first two
    lost = swapped | {("p", "d11"): -1.0}  # out of the ten
    result = drift("lakerank", lost, exact)
    assert (result.lists, result.other_sets, result.other_orders) == (2, 1, 2)
    assert result.largest == 12.0


def test_the_ceiling_is_a_rate_of_this_machine() -> None:
    assert 1e9 < matmul_ceiling("cpu", "float32") < 1e14
