"""Audit a ranked run and, if it is fit, publish it: one create-only manifest, then one pointer."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

import lakerank
from lakerank.audit import Bounds, Check, RunCounts, audit
from lakerank.lake.runs import RunPaths, current_run, publish, read_manifest, write_manifest
from lakerank.lake.storage import Storage
from lakerank.lake.tables import fragments, read_table_file
from lakerank.spark.plan import Plan, pairs_folder
from lakerank.spark.plan_files import read_pairs
from lakerank.spark.rank import RankRule, outcomes, read_scores, write_ranked, write_rejected

logger = logging.getLogger(__name__)

#: The golden pairs table: pairs of the lake whose logits must not move.
GOLDEN = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("logit", pa.float32(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class AuditRules:
    """Bounds of the audit and, where configured, the address of the golden pairs."""

    bounds: Bounds
    golden_pairs: str | None = None


@dataclass(frozen=True, slots=True)
class Ranked:
    """What ranking wrote."""

    counts: RunCounts
    scored: int
    reused: int
    labels: Mapping[str, int]
    reasons: Mapping[str, int]
    ranked_files: tuple[Mapping[str, Any], ...]
    rejected_files: tuple[Mapping[str, Any], ...]


def rank_and_publish(
    spark: SparkSession,
    storage: Storage,
    paths: RunPaths,
    plan: Plan,
    rule: RankRule,
    rules: AuditRules,
    about: Mapping[str, Any],
) -> tuple[dict[str, Any], bool]:
    """Rank the run's scores, audit the lists and publish them if they pass.

    Args:
        about: what else the manifest should say: model, config, what scoring took.

    Returns:
        The manifest, and whether the run is published. Of two drivers at one run, one writes the manifest and the
        other returns that one's.
    """
    results = outcomes(
        read_pairs(spark, storage, pairs_folder(paths, plan.attempt)),
        read_scores(spark, storage, paths.output, plan.scorer, (*plan.units, *plan.reused_units)),
    ).persist()
    try:
        ranked = _rank(spark, storage, paths, plan, rule, results)
        checks = _audit(spark, storage, paths, ranked.counts, rules, results)
    finally:
        results.unpersist()
    manifest = _manifest(paths, plan, rule, ranked, checks, about)
    for check in checks:
        level = logging.INFO if check.passed else logging.ERROR
        bound = "not bounded" if check.bound is None else f"at most {check.bound:g}"
        logger.log(level, "audit: %s = %.4g (%s) %s", check.name, check.value or 0, bound, check.detail)
    if not all(check.passed for check in checks):
        return manifest, False
    return settle(storage, paths, manifest), True


def settle(storage: Storage, paths: RunPaths, manifest: dict[str, Any]) -> dict[str, Any]:
    """Write the manifest unless the run has one, then move the pointer; returns the manifest that stands."""
    if not write_manifest(storage, paths, manifest):
        logger.warning("run %s was published by another driver meanwhile: its manifest stands", paths.run_id)
        manifest = read_manifest(storage, paths.output, paths.run_id) or manifest
    publish(storage, paths, manifest["published_at"])
    return manifest


def _rank(
    spark: SparkSession, storage: Storage, paths: RunPaths, plan: Plan, rule: RankRule, results: DataFrame
) -> Ranked:
    ranked = write_ranked(spark, storage, paths.ranked, results, plan.boundaries, rule)
    rejected = write_rejected(spark, storage, paths.rejected, results, plan.boundaries)
    own = (
        F.col("unit").isin(list(plan.units)) if len(plan.units) < 1000 else ~F.col("unit").isin(list(plan.reused_units))
    )
    totals = results.agg(
        F.count_if(F.col("logit").isNotNull() & own).alias("scored"),
        F.count_if(F.col("logit").isNotNull() & ~own).alias("reused"),
        F.count_if(F.col("logit").isNull() & F.col("reason").isNull()).alias("unscored"),
    ).collect()[0]
    queries = pc.sum(ranked["queries"]).as_py()
    counts = RunCounts(
        candidates=plan.candidates,
        ranked=pc.sum(ranked["rows"]).as_py(),
        beyond_depth=pc.sum(ranked["beyond_depth"]).as_py(),
        rejected=pc.sum(rejected["rows"]).as_py(),
        unscored=int(totals["unscored"]),
        queries=plan.queries,
        unranked_queries=plan.queries - queries,
        truncated=pc.sum(ranked["truncated"]).as_py(),
        histogram=tuple(map(sum, zip(*ranked["histogram"].to_pylist(), strict=True))),
    )
    return Ranked(
        counts,
        int(totals["scored"]),
        int(totals["reused"]),
        _sum_counts(ranked),
        _sum_counts(rejected),
        tuple(ranked.select(["file", "rows"]).to_pylist()),
        tuple(rejected.select(["file", "rows"]).to_pylist()),
    )


def _sum_counts(report: pa.Table) -> dict[str, int]:
    total: Counter[str] = Counter()
    for counts in report["counts"].to_pylist():
        total.update(dict(counts))
    return dict(sorted(total.items()))


def _audit(
    spark: SparkSession, storage: Storage, paths: RunPaths, counts: RunCounts, rules: AuditRules, results: DataFrame
) -> list[Check]:
    current = current_run(storage, paths.output)
    last = read_manifest(storage, paths.output, current["run_id"]) if current else None
    golden = _golden_errors(spark, storage, rules.golden_pairs, results) if rules.golden_pairs else None
    return audit(counts, rules.bounds, last["histogram"] if last else None, golden)


def _golden_errors(
    spark: SparkSession, storage: Storage, address: str, results: DataFrame
) -> dict[tuple[str, str], float | None]:
    expected: dict[tuple[str, str], float] = {}
    for fragment in fragments(storage, address, GOLDEN):
        for _, _, batch in read_table_file(storage, fragment.file.uri, GOLDEN):
            expected |= {(row["query_id"], row["doc_id"]): row["logit"] for row in batch.to_pylist()}
    keys = spark.createDataFrame(list(expected), "query_id string, doc_id string")
    found = results.join(F.broadcast(keys), ["query_id", "doc_id"]).filter(F.col("logit").isNotNull())
    logits = {(row["query_id"], row["doc_id"]): row["logit"] for row in found.collect()}
    return {pair: abs(logits[pair] - logit) if pair in logits else None for pair, logit in expected.items()}


def _manifest(
    paths: RunPaths, plan: Plan, rule: RankRule, ranked: Ranked, checks: list[Check], about: Mapping[str, Any]
) -> dict[str, Any]:
    counts = asdict(ranked.counts)
    histogram = counts.pop("histogram")
    manifest = {
        "run_id": paths.run_id,
        "published_at": datetime.now(UTC).isoformat(timespec="microseconds"),
        "lakerank": lakerank.__version__,
        "scorer": plan.scorer,
        "ranking": asdict(rule),
        "counts": {**counts, "scored": ranked.scored, "reused": ranked.reused, "duplicates": plan.duplicates},
        "labels": ranked.labels,
        "rejected": ranked.reasons,
        "audit": [check.as_dict() for check in checks],
        "inputs": plan.inputs,
        "plan": {"attempt": plan.attempt, "cost": plan.cost, "pairwise_cost": plan.pairwise_cost},
        "units": list(plan.units),
        "reused_units": list(plan.reused_units),
        "ranked_files": list(ranked.ranked_files),
        "rejected_files": list(ranked.rejected_files),
        "histogram": histogram,
        **about,
    }
    json.dumps(manifest, allow_nan=False)  # a manifest that cannot be written must fail before anything is published
    return manifest
