"""Calibrations: what an independent logistic regression finds, each reranker's from its own pairs, in a config."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from lakerank.config import load_config
from lakerank.errors import EvaluationError
from lakerank_evaluation.analysis.scores import SCORED_PAIR, ScoredPairs
from lakerank_evaluation.pairs import MODALITY_NAMES
from lakerank_training.fits.scales import fit_scales, log_loss, platt

ROOT = Path(__file__).parents[2]
TEXT, IMAGE, BOTH = (MODALITY_NAMES.index(name) for name in ("text", "image", "text+image"))


def drawn(scale: float, bias: float, pairs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and judgements that are relevant with probability sigmoid(scale × logit + bias)."""
    random = np.random.default_rng(seed)
    logit = random.normal(2, 3, pairs)
    return logit, (random.random(pairs) < 1 / (1 + np.exp(-scale * logit - bias))).astype(np.float64)


def pairs(logit: np.ndarray, judgement: np.ndarray | int, query: int, document: int, weight: float = 1) -> ScoredPairs:
    result = np.zeros(len(logit), SCORED_PAIR)
    result["logit"], result["relevance"] = logit, 1 / (1 + np.exp(-logit))
    result["judgement"], result["weight"], result["half"] = judgement, weight, np.arange(len(logit)) % 2
    result["query_modality"], result["modality"] = query, document
    return result


@settings(max_examples=20, deadline=None)
@given(st.floats(0.2, 3), st.floats(-3, 1), st.integers(0, 100))
def test_the_fit_is_that_of_another_library(scale, bias, seed):
    logit, relevant = drawn(scale, bias, 3000, seed)
    weight = np.where(np.arange(3000) % 3, 1.0, 2.5)
    other = LogisticRegression(C=np.inf, tol=1e-8).fit(logit[:, None], relevant, sample_weight=weight)
    result = platt(logit, relevant > 0, weight)
    assert result == pytest.approx((other.coef_[0, 0], other.intercept_[0]), rel=0.05, abs=0.05)


def test_pairs_that_a_threshold_parts_have_a_finite_fit():
    logit = np.array([-2.0, -1.0, 1.0, 2.0])
    scale, bias = platt(logit, logit > 0, np.ones(4))
    assert 0 < scale < 10
    assert bias == pytest.approx(0, abs=1e-3)


def test_each_reranker_is_fitted_to_its_own_pairs():
    text, image = drawn(0.5, -1, 8000, 1), drawn(2, 0.5, 8000, 2)
    fits = fit_scales(np.concatenate([pairs(*text, TEXT, TEXT), pairs(*image, TEXT, IMAGE)]))
    assert (fits["text"].scale, fits["text"].bias) == pytest.approx((0.5, -1), abs=0.1)
    assert (fits["image"].scale, fits["image"].bias) == pytest.approx((2, 0.5), abs=0.1)
    losses = fits["image"].log_loss
    assert losses["fitted"] < losses["current"]
    assert losses["held_out"] == pytest.approx(losses["fitted"], abs=0.01)
    for query, document in ((IMAGE, TEXT), (TEXT, BOTH), (IMAGE, IMAGE)):
        moved = np.concatenate([pairs(*text, TEXT, TEXT), pairs(*image, query, document)])
        assert fit_scales(moved)["image"] == fits["image"]


def test_a_kept_pair_counts_for_all_that_it_stands_for():
    logit, relevant = drawn(1, 0, 4000)
    fit = fit_scales(pairs(logit, relevant, TEXT, TEXT, np.where(relevant == 1, 1, 10)))["text"]
    assert fit.bias == pytest.approx(-np.log(10), abs=0.2)
    assert fit.pairs == int(relevant.sum()) + 10 * int((relevant == 0).sum())


def test_unjudged_pairs_count_as_not_relevant_where_only_relevant_ones_are_named():
    logit, relevant = drawn(1, 0, 4000)
    judged = pairs(logit, relevant, TEXT, TEXT)
    named = pairs(logit, np.where(relevant == 1, 1, -1), TEXT, TEXT)
    assert fit_scales(named)["text"] == fit_scales(judged)["text"]
    both = np.concatenate([judged, pairs(logit, -1, TEXT, TEXT)])
    assert fit_scales(both)["text"] == fit_scales(judged)["text"]


def test_without_judgements_of_both_kinds_there_is_no_fit():
    logit, relevant = drawn(1, 0, 200)
    assert fit_scales(pairs(logit, relevant, TEXT, TEXT))["image"] is None
    with pytest.raises(EvaluationError, match="judge more documents"):
        fit_scales(pairs(logit, 1, TEXT, TEXT))


def test_logits_that_fall_as_relevance_rises_are_no_mans_scale():
    logit, relevant = drawn(1, 0, 500)
    with pytest.raises(EvaluationError, match="pairs with an image: logits fall as relevance rises"):
        fit_scales(pairs(-logit, relevant, IMAGE, TEXT))


def test_log_loss_by_hand():
    result = log_loss(np.array([0.5, 0.9]), np.array([True, False]), np.array([1.0, 3.0]))
    assert result == pytest.approx((np.log(2) + 3 * np.log(10)) / 4)


def test_the_job_writes_a_config_with_the_calibration(make_lake, tmp_path):
    logit, relevant = drawn(0.8, -1, 400)
    queries = [f"q{number}" for number in range(20)]
    pairs = [(queries[number % 20], f"d{number}") for number in range(400)]
    ranked = {query: [doc for name, doc in pairs if name == query] for query in queries}
    lake = make_lake(
        documents=[{"doc_id": doc, "text": doc} for _, doc in pairs],
        queries=[{"query_id": query, "text": query} for query in queries],
        candidates=[(query, doc, 1) for query, doc in pairs],
        qrels=[(query, doc, int(grade)) for (query, doc), grade in zip(pairs, relevant, strict=True)],
        ranked=ranked,
        manifest={"published_at": "2026-01-05T10:11:12.000000+00:00", "scorer": "abc"},
        logits=dict(zip(pairs, logit.tolist(), strict=True)),
    )
    settings = [f"lake.{name}={tmp_path}/{name}.parquet" for name in ("documents", "queries", "candidates", "qrels")]
    settings += [f"lake.output={tmp_path}/out", "model.text.calibration={scale: 2.0, bias: 0.5}"]
    Path(lake.paths.config).write_text(load_config(ROOT / "conf" / "routed.yaml", settings).to_yaml())
    command = [sys.executable, ROOT / "jobs" / "evaluate.py", "--config", ROOT / "conf" / "routed.yaml"]
    command += [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run(
        [*command, "--run-id", "r1", "--fit-calibration"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])["calibration"]
    assert "Calibration of pairs with an image: none" in done.stdout
    assert result["image"] is None
    before, after = load_config(ROOT / "conf" / "routed.yaml", settings), load_config(result["config"])
    # The run's logits are 2 × raw + 0.5 already: the fit goes on top of that.
    scale, bias = result["text"]["scale"], result["text"]["bias"]
    assert asdict(after.model.text.calibration) == pytest.approx({"scale": 2 * scale, "bias": 0.5 * scale + bias})
    assert after.model.image == before.model.image
    command += ["--run-id", "r1", "--fit-calibration", "--fit-labels"]
    assert subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == 2
