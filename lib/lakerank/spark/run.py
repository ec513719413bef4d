"""The rerank job: plan, score, rank, audit, publish, in one driver or stage by stage."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pyspark.sql import SparkSession

from lakerank.cost import Calibration
from lakerank.errors import RunConflictError
from lakerank.lake.runs import RunPaths, announce, publish, read_manifest
from lakerank.lake.storage import Storage
from lakerank.logs import about
from lakerank.spark.plan.forecast import in_all, log_forecast
from lakerank.spark.plan.plan import Tables
from lakerank.spark.publish import AuditRules, rank_and_publish
from lakerank.spark.rank.combine import FusionRule
from lakerank.spark.rank.lists import RankRule
from lakerank.spark.runtime.frames import group_jobs
from lakerank.spark.stage import PlannedStage, Stage, run_scorer
from lakerank.spark.stages import Staging, scored_in_all

logger = logging.getLogger(__name__)

STAGES = ("plan", "score", "publish")


@dataclass(frozen=True, slots=True)
class Rerank:
    """A whole rerank job, in plain values.

    Most have one pass, and a RankRule; several are a cascade or an ensemble, and a FusionRule makes them one list.
    """

    paths: RunPaths
    tables: Tables
    stages: tuple[Stage, ...]
    rule: RankRule | FusionRule
    rules: AuditRules
    config_yaml: str
    calibration: Calibration | None = None

    @property
    def made_by(self) -> str:
        """What the run is said to be made by."""
        return run_scorer(self.stages, self.rule.fusion if isinstance(self.rule, FusionRule) else None)


def already_published(storage: Storage, job: Rerank) -> dict[str, Any] | None:
    """The summary of a run that is published already, for which no Spark need start; None when it is not.

    Raises:
        RunConflictError: it was made by another scorer.
    """
    started = time.monotonic()
    manifest = read_manifest(storage, job.paths.output, job.paths.run_id)
    if manifest is None:
        return None
    if manifest["scorer"] != job.made_by:
        raise RunConflictError(
            f"{job.paths.manifest}: run {job.paths.run_id!r} is published and was made by scorer {manifest['scorer']}, "
            f"not {job.made_by}; use another --run-id"
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
    announce(storage, job.paths, job.made_by, [one.scorer for one in job.stages] if len(job.stages) > 1 else ())
    group_jobs(spark, job.paths.run_id)
    staging = Staging(spark, storage, job.paths, job.tables, job.stages)
    with about(stage="plan"):
        planned = staging.plan() if "plan" in stages else staging.planned()
    # Bounds and thresholds may differ from those of an earlier attempt: the file says what the last one went by.
    storage.replace(job.paths.config, job.config_yaml.encode())
    summary = {"run_id": job.paths.run_id, "stages": list(stages)} | _told(job, staging, planned, "plan" in stages)
    if "score" in stages:
        with about(stage="score"):
            planned, scored = staging.score(planned)
        summary |= _told(job, staging, planned, False) | scored_in_all(scored)
        for one, own in zip(summary.get("passes", ()), scored, strict=False):
            one |= asdict(own)
    if "publish" in stages:
        with about(stage="publish"):
            whole = staging.whole(planned)
            took = [staging.took(one) for one in whole]
            manifest, fit = rank_and_publish(spark, storage, job.made_by, whole, job.rule, job.rules, took)
        summary |= _outcome(manifest, fit)
    return _timed(summary, started)


def _told(job: Rerank, staging: Staging, planned: Sequence[PlannedStage], aloud: bool) -> dict[str, Any]:
    """The forecast of the run, for its summary: with several passes each one's, and what they come to."""
    each = staging.forecasts(planned, job.calibration)
    for number, found in enumerate(each, start=1):
        if aloud:
            staging.tell(number)
            log_forecast(found)
    if len(job.stages) == 1:
        return each[0]
    of = [{"scorer": one.scorer, "model": one.model, "top": one.top} for one in job.stages]
    passes = [
        {"pass": n, **about_it, **found} for n, (about_it, found) in enumerate(zip(of, each, strict=True), start=1)
    ]
    return {**in_all(each), "passes": passes}


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
