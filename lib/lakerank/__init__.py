"""Precompute relevance over a document lake. `import lakerank` is instant: heavy libraries load on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lakerank.errors import LakerankError, PairRejected
from lakerank.records import Candidate, Document, DocumentGroup, Qrel, Query, RankedDocument, Reject, RejectReason

if TYPE_CHECKING:
    from lakerank.model.spec import load_reranker

__version__ = "0.1.0"

__all__ = [
    "Candidate",
    "Document",
    "DocumentGroup",
    "LakerankError",
    "PairRejected",
    "Qrel",
    "Query",
    "RankedDocument",
    "Reject",
    "RejectReason",
    "__version__",
    "load_reranker",
]


def __getattr__(name: str) -> Any:
    if name == "load_reranker":
        from lakerank.model.spec import load_reranker

        return load_reranker
    raise AttributeError(f"module 'lakerank' has no attribute {name!r}")
