"""Logits of pairs from rerankers, which take document groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lakerank.records import Document, DocumentGroup, Query, Reranker


def pair_logits(reranker: Reranker, pairs: Sequence[tuple[Query, Document]]) -> np.ndarray:
    """Logits (P,) of pairs in order, each pair a group of its own; all of them can be scored."""
    numbered = [DocumentGroup(pair[1], (replace(pair[0], query_id=str(number)),)) for number, pair in enumerate(pairs)]
    results = sorted(reranker.score_groups(numbered), key=lambda result: int(result.query_id))
    return np.array([result.logit for result in results], dtype=np.float32)
