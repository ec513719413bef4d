"""TREC files as ir_measures and trec_eval read them."""

from __future__ import annotations

from urllib.parse import unquote

import ir_measures
import numpy as np
import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st
from ir_measures import nDCG

from lakerank.errors import ExportError
from lakerank.export.pairs import escaped


def test_ir_measures_reads_the_run_in_the_order_of_the_ranks(lists, write):
    path = write("trec-run", lists)
    result: dict[str, list[tuple[float, str]]] = {}
    for scored in ir_measures.read_trec_run(str(path)):
        result.setdefault(unquote(scored.query_id), []).append((scored.score, unquote(scored.doc_id)))
    assert result.keys() == {ranking.key for ranking in lists}
    for ranking in lists:
        scores = [score for score, _ in result[ranking.key]]
        assert scores == sorted(set(scores), reverse=True), "no tie is left to be broken by id"
        assert [doc for _, doc in sorted(result[ranking.key], reverse=True)] == [row.doc_id for row in ranking.rows]
        np.testing.assert_allclose(scores, [row.logit for row in ranking.rows], rtol=1e-6)


def test_trec_evals_own_code_ranks_as_ranked_does(lists, write):
    path = write("trec-run", lists)
    with path.open() as file:
        run = pytrec_eval.parse_run(file)
    second = {escaped(ranking.key): {escaped(ranking.rows[1].doc_id): 1} for ranking in lists}
    figures = pytrec_eval.RelevanceEvaluator(second, {"recip_rank"}).evaluate(run)
    assert {figure["recip_rank"] for figure in figures.values()} == {0.5}, "the second is second, ties or not"
    assert len(figures) == len(lists)


def test_ir_measures_reads_the_labels_as_qrels(lists, write):
    qrels = list(ir_measures.read_trec_qrels(str(write("trec-qrels", lists))))
    result = {(unquote(qrel.query_id), unquote(qrel.doc_id)): qrel.relevance for qrel in qrels}
    assert result == {(row.query_id, row.doc_id): row.label for ranking in lists for row in ranking.rows}
    run = list(ir_measures.read_trec_run(str(write("trec-run", lists))))
    assert ir_measures.calc_aggregate([nDCG @ 10], qrels, run)[nDCG @ 10] == pytest.approx(1), "labels fall with logits"


@given(st.text(min_size=1))
def test_escaping_leaves_one_word_and_loses_nothing(text):
    written = escaped(text)
    assert written.split() == [written]
    assert written.isprintable()
    assert unquote(written) == text


def test_ids_that_need_no_escape_have_none():
    assert escaped("msmarco_v2.1#doc-日本語:7/é") == "msmarco_v2.1#doc-日本語:7/é"


def test_an_empty_id_is_refused():
    with pytest.raises(ExportError, match="empty"):
        escaped("")
