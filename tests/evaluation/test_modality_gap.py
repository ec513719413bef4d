"""A scorer with a planted gap is reported as having one, and one without is not."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from lakerank_evaluation.analysis.scores import FEWEST_PAIRS, Trust, compare

DOCS = 20
QUERIES = 60


@pytest.fixture
def scored_lake(make_lake, encode):
    """`scored_lake(shift, first_shift)`: text queries with a relevant text and a relevant image each; the reranker adds
    `shift` to what it gives images, the first stage `first_shift`.
    """

    def make(shift, first_shift=0.0, only_relevant=False):
        generator = np.random.default_rng(7)
        picture = encode()
        names = [f"d{number:02}" for number in range(DOCS)]
        images = {name for number, name in enumerate(names) if number % 2}
        candidates, ranked, qrels = [], {}, []
        for query in (f"q{number:02}" for number in range(QUERIES)):
            relevant = {"d00", "d01"}
            qrels += [(query, doc, 1) for doc in sorted(relevant)]

            def score(doc, added, relevant=relevant):
                is_shifted = doc in images and (doc in relevant or not only_relevant)
                return generator.normal(2.0 * (doc in relevant), 1) + added * is_shifted

            first = {doc: score(doc, first_shift) for doc in names}
            logits = {doc: score(doc, shift) for doc in names}
            candidates += [{"query_id": query, "doc_id": doc, "first_stage_score": first[doc]} for doc in names]
            ranked[query] = sorted(names, key=lambda doc: -logits[doc])
            scores.update({(query, doc): logits[doc] for doc in names})
        return make_lake(
            documents=[{"doc_id": name, **({"image": picture} if name in images else {"text": "x"})} for name in names],
            queries=[{"query_id": query, "text": "?"} for query in ranked],
            candidates=candidates,
            qrels=qrels,
            ranked=ranked,
            logits=scores,
        )

    scores: dict[tuple[str, str], float] = {}
    return make


def test_a_planted_gap_is_reported(scored_lake):
    lake = scored_lake(shift=3.0)
    done = lake.evaluated()
    first, reranker = done.evaluation.gaps
    assert (first.stage, first.trust) == ("first stage", Trust.TRUSTED)
    assert (reranker.stage, reranker.query, reranker.trust) == ("reranker", "text", Trust.NOT)
    # Two unit normals 3 apart: AUC Φ(3/√2), overlap 2Φ(-3/2), difference 3.
    assert reranker.relevant.auc == pytest.approx(0.983, abs=0.02)
    assert reranker.others.auc == pytest.approx(0.983, abs=0.01)
    assert reranker.others.difference == pytest.approx(3, abs=0.2)
    assert reranker.others.overlap == pytest.approx(0.134, abs=0.03)
    assert "cannot be trusted" in reranker.words
    assert "it is the modality that is scored" in reranker.words
    html = Path(done.report).read_text()
    assert reranker.words in html
    assert done.summary()["modality_gap"]["reranker, text queries"] == "cannot be trusted"
    assert json.loads(Path(done.figures).read_text())["modality_gap"][1]["relevant"]["auc"] == reranker.relevant.auc


def test_none_is_reported_where_there_is_none(scored_lake):
    first, reranker = scored_lake(shift=0.0, first_shift=-3.0).evaluated().evaluation.gaps
    assert first.trust == Trust.NOT
    assert "relevant texts come before" in first.words
    assert reranker.trust == Trust.TRUSTED
    assert reranker.relevant.auc == pytest.approx(0.5, abs=0.1)
    assert reranker.others.overlap > 0.85


def test_a_scorer_that_knows_one_modality_better_is_told_from_one_that_prefers_it(scored_lake):
    _, reranker = scored_lake(shift=3.0, only_relevant=True).evaluated().evaluation.gaps
    assert reranker.trust == Trust.NOT
    assert "matches of one modality better" in reranker.words


def test_too_few_pairs_say_nothing():
    few, enough = (np.zeros(count) for count in (FEWEST_PAIRS - 1, FEWEST_PAIRS))
    assert compare((few, few + 1), (enough, enough + 1)) is None
    assert compare((enough, enough + 1), (enough, enough + 1)).auc == 0.5


def test_weights_count_as_so_many_pairs():
    generator = np.random.default_rng(2)
    texts, images = generator.normal(size=50), generator.normal(0.4, 1, size=70)
    thrice = compare((np.repeat(texts, 3), np.ones(150)), (images, np.ones(70)))
    weighted = compare((texts, np.full(50, 3.0)), (images, np.ones(70)))
    assert weighted.auc == pytest.approx(thrice.auc)
    assert weighted.difference == pytest.approx(thrice.difference)
    assert math.isclose(weighted.texts, thrice.texts)
