"""A reranker that scores by length, for the adapters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

from lakerank import RejectReason, RerankModel
from lakerank.records import DocumentGroup, Reject, ScoredPair


class Lengths:
    """A document's logit is the length of its text and image, less the query's; what is empty is rejected."""

    logit_bias, fingerprint = 0.0, "lengths"

    def score_groups(self, groups: Iterable[DocumentGroup]) -> Iterator[ScoredPair | Reject]:
        for group in groups:
            length = len(group.document.text or "") + len(group.document.image or b"")
            for query in group.queries:
                ids = query.query_id, group.document.doc_id
                if not length:
                    yield Reject(*ids, RejectReason.EMPTY_DOCUMENT)
                else:
                    logit = length - len(query.text or "") - len(query.image or b"")
                    yield ScoredPair(*ids, float(logit), 1, 1, False, False)


@pytest.fixture
def model() -> RerankModel:
    return RerankModel(Lengths(), "m", "lengths", 7, "cpu", "float32")
