"""Labels: agreement by hand, thresholds that no others beat, and a config that a run takes."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lakerank.config import load_config
from lakerank.errors import EvaluationError
from lakerank.ranking import labels
from lakerank_evaluation.analysis.calibration import agreement, calibration
from lakerank_evaluation.analysis.scores import SCORED_PAIR
from lakerank_training.fits.configs import fit_lines
from lakerank_training.fits.thresholds import fit_thresholds as fit
from lakerank_training.fits.thresholds import fitted_thresholds

ROOT = Path(__file__).parents[2]


def judged(relevance, grade, weight=1):
    pairs = np.zeros(len(grade), SCORED_PAIR)
    pairs["relevance"], pairs["judgement"], pairs["weight"] = relevance, grade, weight
    pairs["half"] = np.arange(len(grade)) % 2
    return pairs


def test_agreement_by_hand():
    # Cohen's kappa with squared weights of [[2, 1, 0], [0, 1, 1], [0, 0, 1]]: observed 2/6.
    label, grade = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 2, 2])
    result = agreement(label, grade, np.ones(6))
    assert result.table == ((2, 1, 0), (0, 1, 1), (0, 0, 1))
    assert result.accuracy == pytest.approx(4 / 6)
    expected = sum((a - b) ** 2 for a, b in itertools.product(label.tolist(), grade.tolist())) / 36
    assert result.kappa == pytest.approx(1 - (2 / 6) / expected)
    assert result.reached == ((1.0, 3 / 4), (1.0, 1 / 2))


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2), st.integers(1, 3)), min_size=3, max_size=25).filter(
        lambda pairs: len({pair[0] for pair in pairs}) >= 3 and len({pair[1] for pair in pairs}) == 3
    )
)
def test_no_other_thresholds_agree_better(pairs):
    relevance, grade, weight = (np.array(column) for column in zip(*pairs, strict=True))
    relevance = (relevance / 16).astype(np.float64)

    def kappa(thresholds):
        label = labels(relevance.astype(np.float32), thresholds).astype(np.int64)
        return agreement(label, grade, weight.astype(np.float64)).kappa

    result = fitted_thresholds(judged(relevance, grade, weight), 3)
    values = np.unique(relevance)
    cuts = itertools.combinations(values[1:].tolist(), 2)
    assert kappa(result) == pytest.approx(max(kappa(cut) for cut in cuts), abs=1e-9)
    assert list(result) == sorted(set(result))


def test_thresholds_of_separable_grades_are_found():
    generator = np.random.default_rng(0)
    grade = generator.integers(0, 4, 400)
    relevance = grade / 4 + generator.random(400) * 0.2
    result = fit(judged(relevance, grade * 10))
    assert result.grades == (0, 10, 20, 30)
    assert result.agreement.kappa == result.held_out.kappa == 1.0
    np.testing.assert_allclose(result.thresholds, [0.225, 0.475, 0.725], atol=0.03)
    assert result.current.kappa == 0.0


@pytest.mark.parametrize(("relevant", "noise", "worthless"), [(4, 0.02, False), (400, 0.2, False), (4, 1.0, True)])
def test_thresholds_that_are_worth_little_say_so(relevant, noise, worthless):
    generator = np.random.default_rng(0)
    grade = (np.arange(1000) < relevant).astype(int)
    fitted = fit(judged(grade * (1 - noise) + generator.random(1000) * noise, grade))
    assert bool(fitted.warning) == worthless
    assert (fitted.as_dict()["warning"] is not None) == worthless
    if worthless:
        assert "do not use the labels" in fitted.warning
        assert "WARNING: these thresholds" in fit_lines({**fitted.as_dict(), "config": "fitted.yaml"})


def test_what_cannot_be_fitted_is_said():
    with pytest.raises(EvaluationError, match="1 grade"):
        fit(judged([0.1, 0.2], [1, 1]))
    with pytest.raises(EvaluationError, match="too few to tell 2 grades apart"):
        fit(judged([0.5, 0.5], [0, 1]))


def test_calibration_by_hand():
    bins, error = calibration(judged([0.05, 0.05, 0.95, 0.95], [0, 1, 2, 1]))
    assert [(point.relevance, point.pairs, point.relevant) for point in bins] == [
        (0.05, 2, 0.5),
        (pytest.approx(0.95), 2, 1.0),
    ]
    assert error == pytest.approx((0.45 + 0.05) / 2)


def test_the_job_writes_a_config_that_loads(make_lake, tmp_path):
    docs = [f"d{number}" for number in range(6)]
    queries = [f"q{number}" for number in range(10)]
    lake = make_lake(
        documents=[{"doc_id": doc, "text": "x"} for doc in docs],
        queries=[{"query_id": query, "text": "x"} for query in queries],
        candidates=[(query, doc, rank) for query in queries for rank, doc in enumerate(docs, start=1)],
        qrels=[(query, doc, grade) for query in queries for doc, grade in zip(docs, (2, 1, 1, 0, 0, 0), strict=True)],
        ranked=dict.fromkeys(queries, docs),
    )
    command = [sys.executable, str(ROOT / "jobs/evaluate.py"), "--config", str(ROOT / "conf/demo.yaml")]
    tables = {"output": lake.paths.output} | {
        name: getattr(lake.tables, name) for name in ("documents", "queries", "candidates", "qrels")
    }
    for name, value in tables.items():
        command += ["--set", f"lake.{name}={value}"]
    done = subprocess.run(
        [*command, "--run-id", "r1", "--fit-labels"], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 0, done.stderr
    fitted = json.loads(done.stdout.splitlines()[-1])["labels"]
    assert fitted["fitted"] == {"accuracy": 1.0, "kappa": 1.0, "at_least": [{"precision": 1.0, "recall": 1.0}] * 2}
    assert fitted["unjudged_are_0"] is False
    config = load_config(fitted["config"])
    # make_lake gives relevance 1 / (rank + 1): 1/2 to grade 2, 1/3 and 1/4 to grade 1, from 1/5 down to grade 0.
    one, two = config.ranking.label_thresholds
    assert 1 / 5 < one <= 1 / 4
    assert 1 / 3 < two <= 1 / 2
    assert yaml.safe_load(Path(fitted["config"]).read_text())["lake"]["output"] == lake.paths.output
    assert "kappa +1.000" in done.stdout
