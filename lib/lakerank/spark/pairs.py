"""From candidates to judged pairs: each is new, already scored, or rejected. Frames in, frames out; no I/O."""

from __future__ import annotations

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from lakerank.records import RejectReason

_PLACE = ("file", "row_group", "row")


def distinct_candidates(candidates: DataFrame) -> DataFrame:
    """A pair listed twice is one candidate, at its better first-stage rank. Adds `listed`, how often it stood there."""
    return candidates.groupBy("query_id", "doc_id").agg(
        F.min("first_stage_rank").alias("first_stage_rank"), F.count(F.lit(1)).alias("listed")
    )


def unique_keys(index: DataFrame, prefix: str) -> DataFrame:
    """One row an id, at its first place in the table; `…_conflict` where the id stands for different contents."""
    first = F.min(F.struct(*_PLACE, "cost", "empty"))
    keys = index.groupBy("id").agg(F.min("hash").alias("hash"), F.max("hash").alias("other"), first.alias("at"))
    return keys.select(
        F.col("id").alias(f"{prefix}_id"),
        F.col("hash").alias(f"{prefix}_hash"),
        (F.col("hash") != F.col("other")).alias(f"{prefix}_conflict"),
        F.col("at.empty").alias(f"{prefix}_empty"),
        *(F.col(f"at.{name}").alias(f"{prefix[0]}_{name}") for name in (*_PLACE, "cost")),
    )


def judge(candidates: DataFrame, queries: DataFrame, documents: DataFrame, stored: DataFrame | None) -> DataFrame:
    """Every candidate with what is known of it: its reject reason, or the unit that holds its score, or neither (new).

    Args:
        candidates: of `distinct_candidates`.
        queries, documents: of `unique_keys`.
        stored: query_hash, doc_hash, unit, tried; see `stored_scores`.
    """
    joined = candidates.join(queries, "query_id", "left").join(documents, "doc_id", "left")
    judged = joined.withColumn("reason", _reason())
    if stored is None:
        return judged.withColumns({"unit": F.lit(None).cast("string"), "tried": F.lit(None).cast("string")})
    return judged.join(stored, ["query_hash", "doc_hash"], "left")


def stored_scores(keys: DataFrame, transient: list[str]) -> DataFrame:
    """Which unit holds each pair's score. A reject that the machine caused counts as tried, not as stored.

    Args:
        keys: query_hash, doc_hash, unit, reason of every stored row.
    """
    lasting = F.col("reason").isNull() | ~F.col("reason").isin(transient)
    return keys.groupBy("query_hash", "doc_hash").agg(
        F.min(F.when(lasting, F.col("unit"))).alias("unit"), F.max(F.when(~lasting, F.col("unit"))).alias("tried")
    )


def is_new() -> Column:
    """Pairs that this run must score."""
    return F.col("reason").isNull() & F.col("unit").isNull()


def _reason() -> Column:
    return (
        F.when(F.col("query_hash").isNull(), RejectReason.MISSING_QUERY.value)
        .when(F.col("doc_hash").isNull(), RejectReason.MISSING_DOCUMENT.value)
        .when(F.col("query_conflict"), RejectReason.DUPLICATE_QUERY_ID.value)
        .when(F.col("doc_conflict"), RejectReason.DUPLICATE_DOCUMENT_ID.value)
        .when(F.col("query_empty"), RejectReason.EMPTY_QUERY.value)
        .when(F.col("doc_empty"), RejectReason.EMPTY_DOCUMENT.value)
    )
