"""Plan a run: which pairs are new, already scored or rejected, and the work units for the new ones."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from lakerank.cost import Sizing
from lakerank.errors import RunConflictError, StorageError
from lakerank.fingerprint import fingerprint
from lakerank.lake.blobs import ChangedFile
from lakerank.lake.runs import RunPaths
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import Fragment, fragments
from lakerank.schemas import CANDIDATES, DOCUMENTS, QUERIES
from lakerank.spark.frames import describe_job
from lakerank.spark.index import key_index
from lakerank.spark.inputs import read_candidates, read_stored
from lakerank.spark.pairs import distinct_candidates, is_new, judge, unique_keys
from lakerank.spark.plan_files import write_pairs, write_sources, write_units

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """A run's plan as it stands in plan.json. Counts are of distinct pairs, costs in tokens."""

    attempt: str
    scorer: str
    made_from: str
    candidates: int
    duplicates: int
    new: int
    reused: int
    rejected: int
    queries: int
    documents: int
    cost: int
    pairwise_cost: int
    largest_unit: int
    units: tuple[str, ...]
    reused_units: tuple[str, ...]
    boundaries: tuple[str, ...]
    inputs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Tables:
    """Addresses of the tables a run reads."""

    documents: str
    queries: str
    candidates: str


@dataclass(frozen=True, slots=True)
class PlanLimits:
    """How costs are estimated and units cut."""

    document: Sizing
    query: Sizing
    max_queries_per_group: int
    unit_tokens: int
    rows_per_file: int


def plan_folder(paths: RunPaths, attempt: str) -> str:
    """Where an attempt at planning leaves its files; only the one that plan.json names counts."""
    return join(paths.plan, attempt)


def pairs_folder(paths: RunPaths, attempt: str) -> str:
    """Where the plan keeps every candidate as judged."""
    return join(plan_folder(paths, attempt), "pairs")


def units_folder(paths: RunPaths, attempt: str) -> str:
    """Where the plan keeps one file of document groups for each unit."""
    return join(plan_folder(paths, attempt), "units")


def sources_address(paths: RunPaths, attempt: str) -> str:
    """The file with the versions of the tables' files that the plan was made from."""
    return join(plan_folder(paths, attempt), "sources.parquet")


def load_plan(storage: Storage, paths: RunPaths) -> Plan | None:
    """The plan of a run, or None if it has not been planned."""
    address = join(paths.plan, "plan.json")
    if not storage.exists(address):
        return None
    values = json.loads(storage.read_bytes(address))
    lists: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return Plan(**lists)


def ensure_plan(
    spark: SparkSession, storage: Storage, paths: RunPaths, tables: Tables, scorer: str, limits: PlanLimits
) -> Plan:
    """The run's plan, made now unless an earlier attempt at this run has made it.

    Raises:
        RunConflictError: the run was planned from other tables or for another scorer.
        SchemaError, StorageError: a table cannot be read as the contract says.
    """
    made_from = fingerprint({"tables": asdict(tables), "scorer": scorer, "limits": asdict(limits)})
    plan = load_plan(storage, paths)
    if plan is None:
        made = _make(spark, storage, paths, tables, scorer, limits, made_from)
        address = join(paths.plan, "plan.json")
        if storage.create(address, json.dumps(asdict(made), indent=1, ensure_ascii=False).encode()):
            return made
        logger.warning("run %s was planned by another driver meanwhile: going on with its plan", paths.run_id)
        plan = load_plan(storage, paths)
    if plan is None or plan.made_from != made_from:
        raise RunConflictError(
            f"{paths.plan}: run {paths.run_id!r} was planned from other tables, another model or other limits; "
            "use another --run-id, or the config in its folder"
        )
    logger.info("plan: found, made by an earlier attempt at run %s", paths.run_id)
    return plan


def _make(
    spark: SparkSession,
    storage: Storage,
    paths: RunPaths,
    tables: Tables,
    scorer: str,
    limits: PlanLimits,
    made_from: str,
) -> Plan:
    inputs = {
        "documents": fragments(storage, tables.documents, DOCUMENTS),
        "queries": fragments(storage, tables.queries, QUERIES),
        "candidates": fragments(storage, tables.candidates, CANDIDATES),
    }
    pairs = judge(
        distinct_candidates(read_candidates(spark, storage, inputs["candidates"])),
        unique_keys(key_index(spark, storage, paths.output, "queries", inputs["queries"], limits.query), "query"),
        unique_keys(key_index(spark, storage, paths.output, "documents", inputs["documents"], limits.document), "doc"),
        read_stored(spark, storage, paths.output, scorer),
    ).persist(StorageLevel.MEMORY_AND_DISK)
    attempt = secrets.token_hex(4)
    try:
        describe_job(spark, "plan: judge candidates")
        totals = _totals(pairs)
        write_sources(storage, sources_address(paths, attempt), [*inputs["documents"], *inputs["queries"]])
        write_pairs(storage, pairs_folder(paths, attempt), pairs)
        units = write_units(
            spark, storage, units_folder(paths, attempt), pairs, limits.max_queries_per_group, limits.unit_tokens
        )
        for name, address in asdict(tables).items():
            _check_unchanged(storage, address, inputs[name])
        return Plan(
            attempt=attempt,
            scorer=scorer,
            made_from=made_from,
            **totals,
            cost=sum(units["cost"].to_pylist()),
            largest_unit=max(units["cost"].to_pylist(), default=0),
            units=tuple(units["unit"].to_pylist()),
            reused_units=_reused_units(pairs),
            boundaries=_boundaries(pairs, totals["candidates"], limits.rows_per_file),
            inputs={name: _describe(files) for name, files in inputs.items()},
        )
    finally:
        pairs.unpersist()


def _check_unchanged(storage: Storage, address: str, files: Sequence[Fragment]) -> None:
    """One more listing: a plan made while a table was being written would mix its versions."""
    now = {file.uri: file.version for file in storage.list_parquet(address)}
    for planned in (fragment.file for fragment in files):
        if now.get(planned.uri) != planned.version:
            raise ChangedFile(planned.uri, "replaced while the run was being planned")


def _totals(pairs: DataFrame) -> dict[str, int]:
    row = pairs.agg(
        F.count(F.lit(1)).alias("candidates"),
        (F.coalesce(F.sum("listed"), F.lit(0)) - F.count(F.lit(1))).alias("duplicates"),
        F.count_if(is_new()).alias("new"),
        F.count_if(F.col("reason").isNull() & F.col("unit").isNotNull()).alias("reused"),
        F.count_if(F.col("reason").isNotNull()).alias("rejected"),
        F.count_distinct("query_id").alias("queries"),
        F.count_distinct("doc_id").alias("documents"),
        F.coalesce(F.sum(F.when(is_new(), F.col("d_cost") + F.col("q_cost"))), F.lit(0)).alias("pairwise_cost"),
    ).first()
    return {key: int(value) for key, value in row.asDict().items()} if row else {}


def _reused_units(pairs: DataFrame) -> tuple[str, ...]:
    reused = pairs.filter(F.col("reason").isNull() & F.col("unit").isNotNull())
    return tuple(sorted(row["unit"] for row in reused.select("unit").distinct().collect()))


def _boundaries(pairs: DataFrame, candidates: int, rows_per_file: int) -> tuple[str, ...]:
    """First query ids of all ranked files but the first. They depend on the candidates alone, so that files repeat."""
    files = -(-candidates // rows_per_file)
    if files <= 1:
        return ()
    per_query = pairs.groupBy("query_id").agg(F.count(F.lit(1)).alias("pairs"))
    # Sampling by hash keeps the same queries whatever the order or partitioning; a thousand a file are plenty.
    sampled = per_query.filter(F.pmod(F.xxhash64("query_id"), F.lit(max(1, candidates // (1000 * files)))) == 0)
    rows = sorted((row["query_id"] or "", row["pairs"]) for row in sampled.collect())
    passed = np.cumsum([count for _, count in rows])
    shares = np.searchsorted(passed, passed[-1] * np.arange(1, files) / files) if rows else []
    return tuple(sorted({rows[min(int(index) + 1, len(rows) - 1)][0] for index in shares}))


def _describe(files: Sequence[Fragment]) -> dict[str, int]:
    return {"files": len(files), "rows": sum(f.rows for f in files), "bytes": sum(f.file.size for f in files)}


def verify_plan_files(storage: Storage, paths: RunPaths, plan: Plan) -> None:
    """Raises StorageError when files of the plan have been deleted."""
    missing = set(plan.units) - {
        name.removesuffix(".parquet") for name in storage.list_names(units_folder(paths, plan.attempt))
    }
    if missing:
        raise StorageError(
            f"{units_folder(paths, plan.attempt)}: {len(missing)} unit files are gone; use another --run-id"
        )
