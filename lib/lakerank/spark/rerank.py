"""The rerank job: plan, score, rank, audit, publish, in one driver or stage by stage."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pyspark.sql import SparkSession

from lakerank.cost import Calibration, device_seconds, tflop
from lakerank.errors import RunConflictError
from lakerank.lake.runs import RunPaths, announce, publish, read_manifest
from lakerank.lake.storage import Storage, join
from lakerank.logs import about
from lakerank.spark.frames import group_jobs
from lakerank.spark.plan import (
    Plan,
    PlanLimits,
    Tables,
    load_plan,
    planned_units,
    sources_address,
    units_folder,
    verify_plan_files,
)
from lakerank.spark.planner import ensure_plan
from lakerank.spark.publish import AuditRules, rank_and_publish
from lakerank.spark.rank import RankRule
from lakerank.spark.score import RerankerFactory, ScoringJob, ScoringSummary, score_units
from lakerank.spark.session import unmanaged_gpus

logger = logging.getLogger(__name__)

STAGES = ("plan", "score", "publish")


@dataclass(frozen=True, slots=True)
class Rerank:
    """A whole rerank job, in plain values."""

    paths: RunPaths
    tables: Tables
    scorer: str
    parameters: int
    factory: RerankerFactory
    device: str
    limits: PlanLimits
    rule: RankRule
    rules: AuditRules
    config_yaml: str
    calibration: Calibration | None = None


def already_published(storage: Storage, job: Rerank) -> dict[str, Any] | None:
    """The summary of a run that is published already, for which no Spark need start; None when it is not.

    Raises:
        RunConflictError: it was made by another scorer.
    """
    started = time.monotonic()
    manifest = read_manifest(storage, job.paths.output, job.paths.run_id)
    if manifest is None:
        return None
    if manifest["scorer"] != job.scorer:
        raise RunConflictError(
            f"{job.paths.manifest}: run {job.paths.run_id!r} is published and was made by scorer {manifest['scorer']}, "
            f"not {job.scorer}; use another --run-id"
        )
    logger.info("run %s is published already: nothing to do", job.paths.run_id)
    publish(storage, job.paths, manifest["published_at"])  # an earlier attempt may have died before the pointer moved
    return _timed({"run_id": job.paths.run_id, **_outcome(manifest, True), "model_loads": 0}, started)


def run(spark: SparkSession, storage: Storage, job: Rerank, stages: Collection[str] = STAGES) -> dict[str, Any]:
    """Run some or all stages, in order. Returns the summary that the job prints.

    Raises:
        RunConflictError: the run exists and was made from something else, or has not been planned.
        SchemaError, StorageError: a table cannot be read, or the output not written.
    """
    started = time.monotonic()
    published = already_published(storage, job)
    if published is not None:
        return published
    storage.check_writable(job.paths.output)
    announce(storage, job.paths, job.scorer)
    group_jobs(spark, job.paths.run_id)
    with about(stage="plan"):
        plan = _planned(spark, storage, job, stages)
    # Bounds and thresholds may differ from those of an earlier attempt: the file says what the last one went by.
    storage.replace(job.paths.config, job.config_yaml.encode())
    forecast = _forecast(plan, job.parameters, job.calibration)
    if "plan" in stages:
        _log_forecast(forecast)
    summary: dict[str, Any] = {"run_id": job.paths.run_id, "stages": list(stages), **forecast}
    if "score" in stages:
        with about(stage="score"):
            summary |= _scored(spark, storage, job, plan)
    if "publish" in stages:
        with about(stage="publish"):
            told = {
                "model": {"parameters": job.parameters, "device": job.device},
                "planning": _left(storage, _planning_address(job)),
                "scoring": _left(storage, _scoring_address(job)),
            }
            manifest, fit = rank_and_publish(spark, storage, job.paths, plan, job.rule, job.rules, told)
        summary |= _outcome(manifest, fit)
    return _timed(summary, started)


def _planned(spark: SparkSession, storage: Storage, job: Rerank, stages: Collection[str]) -> Plan:
    if "plan" in stages:
        logger.info("plan: reading the keys of %s", job.tables.candidates)
        started = time.monotonic()
        plan = ensure_plan(spark, storage, job.paths, job.tables, job.scorer, job.limits)
        # Only once: an attempt that finds the plan there would say that planning takes no time.
        storage.create(_planning_address(job), json.dumps({"seconds": time.monotonic() - started}).encode())
        return plan
    found = load_plan(storage, job.paths)
    if found is None:
        raise RunConflictError(f"{job.paths.plan}: run {job.paths.run_id!r} has no plan yet; run --stage plan first")
    if found.scorer != job.scorer:
        raise RunConflictError(
            f"{job.paths.plan}: planned for scorer {found.scorer}, but this config's model is {job.scorer}; "
            "use the same model section in every stage"
        )
    return found


def _scored(spark: SparkSession, storage: Storage, job: Rerank, plan: Plan) -> dict[str, Any]:
    verify_plan_files(storage, job.paths, plan)
    units = planned_units(storage, job.paths, plan)
    scoring = ScoringJob(
        job.paths.output,
        plan.scorer,
        units_folder(job.paths, plan.attempt),
        sources_address(job.paths, plan.attempt),
        job.device,
        job.factory,
    )
    summary = score_units(spark, storage, scoring, units, tasks=unmanaged_gpus(spark, job.device) or None)
    _log_scoring(summary)
    if summary.found < summary.units or not summary.units:
        storage.replace(_scoring_address(job), json.dumps(asdict(summary)).encode())
    return asdict(summary)


def _log_scoring(summary: ScoringSummary) -> None:
    logger.info(
        "score: %d pairs in %d units (%d found done) in %.1f s, %.0f pairs/s, %d model loads",
        summary.pairs,
        summary.units,
        summary.found,
        summary.seconds,
        summary.pairs / summary.seconds,
        summary.model_loads,
    )
    if summary.tokens_computed:
        saved = summary.tokens_pairwise / summary.tokens_computed
        logger.info(
            "score: the model read %d tokens; pair by pair, without padding, it would have read %d (%.1fx)",
            summary.tokens_computed,
            summary.tokens_pairwise,
            saved,
        )


def _scoring_address(job: Rerank) -> str:
    return join(job.paths.plan, "scoring.json")


def _planning_address(job: Rerank) -> str:
    return join(job.paths.plan, "planning.json")


def _left(storage: Storage, address: str) -> dict[str, Any] | None:
    """What a stage took, as the attempt that did its work left it: stages may be processes of their own."""
    return dict(json.loads(storage.read_bytes(address))) if storage.exists(address) else None


def _forecast(plan: Plan, parameters: int, calibration: Calibration | None) -> dict[str, Any]:
    """What the plan says the run will cost: into the summary, and as a line of the log."""
    hours = device_seconds(calibration, parameters, plan.cost) / 3600 if calibration else None
    fetching = plan.fetch_bytes / calibration.fetch_bytes_per_second / 3600 if calibration else None
    return {
        "candidates": plan.candidates,
        "duplicates": plan.duplicates,
        "new": plan.new,
        "reused": plan.reused,
        "rejected": plan.rejected,
        "dropped": plan.dropped,
        "units": plan.units,
        "forecast_documents": plan.new_documents,
        "forecast_tokens": plan.cost,
        "forecast_tokens_pairwise": plan.pairwise_cost,
        "forecast_patches": plan.patches,
        "forecast_fetch_bytes": plan.fetch_bytes,
        "forecast_read_amplification": round(plan.read_bytes / plan.fetch_bytes, 3) if plan.fetch_bytes else None,
        "forecast_tflop": round(tflop(parameters, plan.cost), 3),
        "forecast_device": f"{calibration.device} {calibration.dtype}" if calibration else None,
        "forecast_device_hours": None if hours is None else round(hours, 4),
        "forecast_fetch_hours": None if fetching is None else round(fetching, 4),
        "largest_unit_over_mean": round(plan.largest_unit * plan.units / plan.cost, 3) if plan.cost else 0.0,
        "published": False,
    }


def _log_forecast(forecast: Mapping[str, Any]) -> None:
    logger.info(
        "plan: %d candidates: %d new, %d reused, %d rejected, %d listed twice; %d dropped since the last published run",
        *(forecast[name] for name in ("candidates", "new", "reused", "rejected", "duplicates", "dropped")),
    )
    logger.info(
        "plan: %d documents, %d tokens (%d pair by pair), %d patches, %.3f TFLOP; %d units, largest %.2f of the mean",
        *(forecast[f"forecast_{name}"] for name in ("documents", "tokens", "tokens_pairwise", "patches", "tflop")),
        *(forecast[name] for name in ("units", "largest_unit_over_mean")),
    )
    logger.info(
        "plan: %.3f GB to fetch, in row groups that hold %.2f times as much",
        forecast["forecast_fetch_bytes"] / 1e9,
        forecast["forecast_read_amplification"] or 1,
    )
    if forecast["forecast_device_hours"] is not None:
        logger.info(
            "plan: about %.3g hours of one %s, and %.3g of one task's fetching beside it",
            *(forecast[f"forecast_{name}"] for name in ("device_hours", "device", "fetch_hours")),
        )


def _outcome(manifest: Mapping[str, Any], published: bool) -> dict[str, Any]:
    counts = manifest["counts"]
    names = ("candidates", "scored", "reused", "rejected", "ranked", "beyond_depth", "truncated", "duplicates")
    failed = [check["name"] for check in manifest["audit"] if not check["passed"]]
    return {name: counts[name] for name in names} | {
        "published": published, "failed_audits": failed, "rejected_by_reason": manifest["rejected"],
        "audit": manifest["audit"], "metrics": manifest.get("metrics"),
    }  # fmt: skip


def _timed(summary: dict[str, Any], started: float) -> dict[str, Any]:
    """The summary with this attempt's wall time, and the pairs that it scored itself a second."""
    seconds = time.monotonic() - started
    pace = summary.get("pairs", 0) / seconds if seconds else 0.0
    return summary | {"seconds": round(seconds, 3), "pairs_per_second": round(pace, 3)}
