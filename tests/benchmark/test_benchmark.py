"""The whole model benchmark on a next-to-nothing network: everyone gets the same inputs, and the report says it all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lakerank.cost import Calibration
from lakerank.errors import ConfigError
from lakerank.model.checkpoint import EMBEDDED
from lakerank.model.preprocess.tokenizer import read_tokenizer
from lakerank_benchmark.benchmark import Result, benchmark
from lakerank_benchmark.checkpoints import SHAPES, random_checkpoint
from lakerank_benchmark.contenders import load
from lakerank_benchmark.figures import Absent, Figure, predictions, ran
from lakerank_benchmark.report import as_json, as_text, draw, summary
from lakerank_benchmark.request import CROSS_ENCODER, FAST, PUBLISHED, REPRODUCIBLE, Request
from lakerank_benchmark.workloads import Images, build, scorable

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def result(tiny_shape, small_pages, small_pictograms) -> Result:
    request = Request(
        str(tiny_shape), "bfloat16", "cpu", 1, ("mixed", "pages"), (1, 3),
        (REPRODUCIBLE, FAST, PUBLISHED, CROSS_ENCODER), repeats=2, budget_s=0.1, memory=False,
    )  # fmt: skip
    return benchmark(request, small_pages, small_pictograms)


def test_every_contender_scores_the_same_pairs_alike(tiny_shape, small_pages, small_pictograms) -> None:
    workload = build("mixed", read_tokenizer(EMBEDDED / "tokenizer.json"), small_pages, small_pictograms)
    groups = scorable(workload.groups(6, 2, salt=1))
    request = Request(str(tiny_shape))
    runs = {name: load(name, request).run(groups) for name in (REPRODUCIBLE, FAST, PUBLISHED)}
    exact = runs[PUBLISHED].logits
    assert len(exact) == 12
    for name in (REPRODUCIBLE, FAST):
        assert runs[name].logits == pytest.approx(exact, abs=1e-4)
    assert max(exact.values()) - min(exact.values()) > 0.05
    ours, published = runs[REPRODUCIBLE], runs[PUBLISHED]
    assert published.tokens - published.padding > ours.tokens - ours.padding
    assert 1.0 < published.flops / ours.flops < 4.0  # two queries a document, and one of two layers for the query alone


def test_all_ran_in_every_cell_and_who_did_not_says_why(result: Result) -> None:
    keys = {(figure.workload, figure.k, figure.contender) for figure in ran(result.figures)}
    assert {name for *_, name in keys} == {REPRODUCIBLE, FAST, PUBLISHED}
    assert len(keys) == 2 * 2 * 3
    (absent,) = {(figure.contender, figure.why) for figure in result.figures if isinstance(figure, Absent)}
    assert absent[0] == CROSS_ENCODER
    assert absent[1]
    assert {(cell.workload, cell.k) for cell in result.predictions} == {
        (w, k) for w in ("mixed", "pages") for k in (1, 3)
    }
    assert [drift.contender for drift in result.drifts] == [REPRODUCIBLE, FAST]
    assert all(0 < drift.largest < 1 for drift in result.drifts)


def test_shares_of_wall_time_add_up(result: Result) -> None:
    for figure in ran(result.figures):
        walls = [share for stage, share in figure.shares.items() if stage not in ("decode", "tokenise")]
        assert sum(walls) == pytest.approx(1.0, abs=0.05)


def test_a_result_is_reported_as_text_json_picture_and_calibration(result: Result, tmp_path: Path) -> None:
    text = as_text(result)
    for name in (REPRODUCIBLE, PUBLISHED, "MFU", "padding", "max |Δlogit|", "ms/pair predicted", CROSS_ENCODER):
        assert name in text
    assert json.loads(as_json(result))["request"]["dtype"] == "bfloat16"
    draw(result, tmp_path / "benchmark.png")
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert Calibration.from_json(result.calibration.to_json()) == result.calibration
    assert json.loads(json.dumps(summary(result)))["tokens_per_second"] > 0


def test_one_alone_is_drawn_too(result: Result, tmp_path: Path) -> None:
    alone = ran(result.figures, REPRODUCIBLE)
    draw(replace(result, figures=alone, predictions=predictions(alone)), tmp_path / "alone.png")
    assert (tmp_path / "alone.png").stat().st_size > 0


@pytest.mark.parametrize(("family", "workload"), [("monoqwen2-vl", "pages"), ("qwen3-reranker", "texts-500")])
def test_generative_rerankers_against_their_own_loops(
    tmp_path: Path, family: str, workload: str, small_pages: Images, small_pictograms: Images
) -> None:
    checkpoint = random_checkpoint(tmp_path, family, SHAPES["tiny"], "float32")
    request = Request(str(checkpoint), "float32", "cpu", 1, (workload,), (2,), (REPRODUCIBLE, PUBLISHED), 1, 0.2, False)
    figures = {figure.contender: figure for figure in benchmark(request, small_pages, small_pictograms).figures}
    ours, published = figures[REPRODUCIBLE], figures[PUBLISHED]
    assert isinstance(ours, Figure)
    assert isinstance(published, Figure)
    assert ours.tokens_per_pair < published.tokens_per_pair
    assert ours.ratio is not None
    assert published.padding == 0


def test_a_workload_that_cannot_be_read(tmp_path: Path, small_pages: Images, small_pictograms: Images) -> None:
    checkpoint = random_checkpoint(tmp_path, "monoqwen2-vl", SHAPES["tiny"], "float32")
    request = Request(str(checkpoint), "float32", "cpu", 1, ("texts-500",), (1,), (REPRODUCIBLE,), 1, 0.2, False)
    with pytest.raises(ConfigError, match="modality_unsupported"):
        benchmark(request, small_pages, small_pictograms)
