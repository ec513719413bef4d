"""Distribution on Spark: the only package that imports pyspark. For one's own DataFrames: `rerank`, `score_udf`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lakerank.spark.dataframe import Scoring, rerank, score_udf

__all__ = ["Scoring", "rerank", "score_udf"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("lakerank.spark.dataframe"), name)
    raise AttributeError(f"module 'lakerank.spark' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
