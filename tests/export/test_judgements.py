"""Graded labels as Quepid's CSV and as scikit-learn's reader of SVMrank's format have them."""

from __future__ import annotations

import csv
from dataclasses import replace
from urllib.parse import unquote

import numpy as np
import pandas as pd
from sklearn.datasets import load_svmlight_file


def test_quepid_gets_every_rating_under_the_querys_text(lists, write):
    named = [replace(lists[0], query_text='the "red"\napple'), *lists[1:]]
    path = write("quepid-csv", named)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, strict=True))
    expected = [(ranking.query_text or ranking.key, row.doc_id, row.label) for ranking in named for row in ranking.rows]
    assert [(row["query"], row["docid"], int(row["rating"])) for row in rows] == expected
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert list(frame.columns) == ["query", "docid", "rating"]
    assert frame["docid"].tolist() == [doc for _, doc, _ in expected]


def test_scikit_learn_reads_labels_queries_and_features(lists, write):
    scored = [replace(ranking, first_stage_scores=tuple(0.1 * row.rank for row in ranking.rows)) for ranking in lists]
    features, labels, queries = load_svmlight_file(str(write("svmrank", scored)), query_id=True)
    rows = [
        (ranking.number, row, score)
        for ranking in scored
        for row, score in zip(ranking.rows, ranking.first_stage_scores, strict=True)
    ]
    assert labels.tolist() == [row.label for _, row, _ in rows]
    assert queries.tolist() == [number for number, _, _ in rows]
    expected = [[row.logit, score, row.first_stage_rank or 0, row.truncated] for _, row, score in rows]
    np.testing.assert_array_equal(features.toarray().astype(np.float32), np.asarray(expected, np.float32))


def test_svmrank_leaves_out_what_is_no_finite_number(lists, write):
    numbers = (float("nan"), float("inf"), float("-inf"), 0.5)
    scored = replace(lists[0], rows=lists[0].rows[:4], first_stage_scores=numbers)
    lines = write("svmrank", [scored]).read_text().splitlines()
    assert [" 2:" in line for line in lines] == [False, False, False, True]
    assert all(" 4:" in line for line in lines)


def test_svmrank_says_which_pair_a_line_is(lists, write):
    lines = write("svmrank", lists).read_text().splitlines()
    pairs = [tuple(unquote(word) for word in line.partition(" # ")[2].split()) for line in lines]
    assert pairs == [(row.query_id, row.doc_id) for ranking in lists for row in ranking.rows]


def test_a_judgement_list_reads_as_the_plugins_examples_do(lists, write):
    named = [replace(lists[0], query_text="the red\n apple"), *lists[1:]]
    path = write("ltr-judgements", named)
    _, labels, queries = load_svmlight_file(str(path), query_id=True)
    assert labels.tolist() == [row.label for ranking in named for row in ranking.rows]
    assert queries.tolist() == [ranking.number for ranking in named for _ in ranking.rows]
    lines = path.read_text().splitlines()
    assert lines[0] == "# qid:1: the red apple"
    judged = [line.split("\t") for line in lines if not line.startswith("# qid:")]
    assert all(len(fields) == 3 and fields[1].endswith(" #") for fields in judged)
    assert [unquote(fields[2]) for fields in judged] == [row.doc_id for ranking in named for row in ranking.rows]
