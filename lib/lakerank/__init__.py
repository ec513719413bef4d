"""Precompute relevance over a document lake. `import lakerank` is instant: heavy libraries load on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lakerank.errors import LakerankError, PairRejected
from lakerank.limits import Limits
from lakerank.records import (
    Candidate,
    Document,
    DocumentGroup,
    Qrel,
    Query,
    RankedDocument,
    RankResult,
    Reject,
    RejectReason,
)

if TYPE_CHECKING:
    from lakerank.model.api import RerankModel, load_reranker
    from lakerank.spark.ranked import read_ranked

__version__ = "0.1.0"

__all__ = [
    "Candidate",
    "Document",
    "DocumentGroup",
    "LakerankError",
    "Limits",
    "PairRejected",
    "Qrel",
    "Query",
    "RankResult",
    "RankedDocument",
    "Reject",
    "RejectReason",
    "RerankModel",
    "__version__",
    "load_reranker",
    "read_ranked",
]

_LAZY = {"RerankModel": "model.api", "load_reranker": "model.api", "read_ranked": "spark.ranked"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"lakerank.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'lakerank' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
