"""Losses against sums done by hand."""

import math

import pytest
import torch

from lakerank_training.losses import (
    binary_cross_entropy,
    listnet,
    ranknet,
    symmetric_listnet,
)

SCORES = torch.tensor([[1.0, 0.0], [2.0, 0.5], [-1.0, 3.0]], dtype=torch.float64)
GRADES = torch.tensor([[1, 0], [0, 0], [1, 2]])
ALL = torch.ones(3, 2, dtype=torch.bool)


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def test_listnet_is_the_cross_entropy_with_the_share_of_grades() -> None:
    first = math.log(math.exp(1) + math.exp(2) + math.exp(-1))
    second = math.log(math.exp(0) + math.exp(0.5) + math.exp(3))
    expected = ((first - 1) / 2 + (first + 1) / 2 + (second - 3)) / 2
    assert float(listnet(SCORES, GRADES, ALL)) == pytest.approx(expected)


def test_listnet_leaves_out_what_is_not_known() -> None:
    known = ALL.clone()
    known[1, 0] = known[2, 0] = False
    second = math.log(math.exp(0) + math.exp(0.5) + math.exp(3)) - 3
    assert float(listnet(SCORES, GRADES, known)) == pytest.approx((0 + second) / 2)


def test_a_query_without_a_relevant_document_adds_nothing() -> None:
    nothing = torch.zeros_like(GRADES)
    scores = SCORES.clone().requires_grad_()
    loss = listnet(scores, nothing, ALL)
    loss.backward()
    assert float(loss.detach()) == 0
    assert scores.grad is not None
    assert not scores.grad.any()


def test_symmetric_listnet_reads_rows_too() -> None:
    both = (listnet(SCORES, GRADES, ALL) + listnet(SCORES.T, GRADES.T, ALL.T)) / 2
    assert float(symmetric_listnet(SCORES, GRADES, ALL)) == pytest.approx(float(both))


def test_ranknet_compares_documents_of_different_grades() -> None:
    pairs = [1.0 - 2.0, -1.0 - 2.0, 3.0 - 0.0, 3.0 - 0.5]  # better minus worse, within each query
    expected = sum(softplus(-difference) for difference in pairs) / 4
    assert float(ranknet(SCORES, GRADES, ALL)) == pytest.approx(expected)


def test_pointwise_loss_weighs_both_classes_the_same() -> None:
    positives = (softplus(-1.0) + softplus(1.0) + softplus(-3.0)) / 3
    negatives = (softplus(2.0) + softplus(0.0) + softplus(0.5)) / 3
    assert float(binary_cross_entropy(SCORES, GRADES, ALL)) == pytest.approx((positives + negatives) / 2)
