"""The engine against the published loop, in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lakerank.model.api import load_reranker
from lakerank.records import Document, Query
from oracles.reference import reference_logits

Pairs = list[tuple[Query, Document]]


@pytest.mark.parametrize("shape", ["grouped", "one_kv_head", "ungrouped"])
def test_engine_equals_published_loop(make_checkpoint: Callable[..., Path], mixed_pairs: Pairs, shape: str) -> None:
    checkpoint = make_checkpoint(shape, seed=len(shape))
    expected = reference_logits(checkpoint, mixed_pairs)
    logits = load_reranker(str(checkpoint), device="cpu").score(mixed_pairs)
    assert np.ptp(expected) > 0.1, "the pairs must differ, or equality says nothing"
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
