"""Distribution on Spark: the only package that imports pyspark. For one's own DataFrames: `rerank`, `score_udf`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lakerank.spark.dataframe import Scoring, rerank
    from lakerank.spark.udf import score_udf

__all__ = ["Scoring", "rerank", "score_udf"]


def __getattr__(name: str) -> Any:
    if name in ("Scoring", "rerank"):
        from lakerank.spark import dataframe

        return getattr(dataframe, name)
    if name == "score_udf":
        from lakerank.spark.udf import score_udf

        return score_udf
    raise AttributeError(f"module 'lakerank.spark' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
