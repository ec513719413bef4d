"""The rerank job in three steps, plan, score and publish, in one driver or each in its own.

A run has one stage, or several: a cascade's stages each score the best of the stage before, an ensemble's score all.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lakerank.cost import Calibration, longest_seconds
from lakerank.credentials import redacted
from lakerank.errors import ConfigError, RunConflictError
from lakerank.lake.checksums import json_bytes
from lakerank.lake.formats import resolve
from lakerank.lake.formats.output import OutputTable
from lakerank.lake.publication import Publication, current_run, publish, write_table
from lakerank.lake.runs import RunPaths, announce, read_json, read_manifest, write_config
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import fragments
from lakerank.logs import about
from lakerank.plan.conflicts import check_settings, naming_differences
from lakerank.plan.forecast import forecast, forecast_between, log_forecast, total_forecast
from lakerank.plan.plan import (
    Tables,
    check_scored,
    check_tables,
    load_plan,
    planned_units,
    sources_address,
    verify_plan_files,
)
from lakerank.rerank.plan.builder import ensure_plan
from lakerank.rerank.plan.next_stage import cost_bounds, ensure_next_stage, find_next_stage
from lakerank.rerank.publish import AuditRules, rank_and_publish
from lakerank.rerank.rank.combine import FusionRule
from lakerank.rerank.rank.write import RankRule
from lakerank.rerank.score import ScoringJob, ScoringSummary, score_units
from lakerank.rerank.stage import SCORING, PlannedStage, ScoredRun, Stage, run_scorer
from lakerank.runner import DEADLINE_FACTOR, Deadline, Runner
from lakerank.schemas import CANDIDATES, DOCUMENTS

logger = logging.getLogger(__name__)

STEPS = ("plan", "score", "publish")

#: A table of more files is large, without a look at all their footers.
_SMALL_TABLE_FILES = 256


@dataclass(frozen=True, slots=True)
class Rerank:
    """A whole rerank job, in plain values. With several stages the rule is a FusionRule.

    `warnings`: what its manifest is to say of it. `ranked_table`: the table that its ranked rows are written to.
    """

    paths: RunPaths
    tables: Tables
    stages: tuple[Stage, ...]
    rule: RankRule | FusionRule
    audit: AuditRules
    config_yaml: str
    calibration: Calibration | None = None
    warnings: tuple[str, ...] = ()
    ranked_table: OutputTable | None = None

    @property
    def scorer(self) -> str:
        """The run's scorer: the stage's, or the fingerprint of all stages'."""
        return run_scorer(self.stages, self.rule.fusion if isinstance(self.rule, FusionRule) else None)


def run(runner: Runner, storage: Storage, job: Rerank, steps: Collection[str] = STEPS) -> dict[str, Any]:
    """Run some or all steps, in order. Returns the summary that the job prints.

    Raises:
        RunConflictError: the run exists with other inputs, or has not been planned.
        ConfigError: queries have instructions, and a reranker takes none.
        SchemaError, StorageError: a table cannot be read, or the output not written.
    """
    started = time.monotonic()
    published = already_published(storage, job)
    if published is not None:
        return published
    check_start(storage, job, steps)
    storage.check_writable(job.paths.output)
    names = [name for stage in job.stages for name in (stage.scorer, stage.limits.encoder) if name]
    announce(storage, job.paths, job.scorer, names if len(names) > 1 else ())
    runner.begin(f"run {job.paths.run_id}")
    with about(stage="plan"), naming_differences(storage, job.paths, job.config_yaml):
        planned = planned_stages(storage, job, runner if "plan" in steps else None)
    refusing = dict.fromkeys(stage.model for stage in job.stages if not stage.allows_instructions)
    if refusing and planned[0].plan.instructed:
        found = f"model: {planned[0].plan.instructed} queries of {redacted(job.tables.queries)} have an instruction"
        advice = "take another, or pass over them with ignore_instructions: true beside its path"
        raise ConfigError([f"{found}, and {' and '.join(refusing)} takes none; {advice}"])
    if job.rule.per_group is not None and "group_id" not in planned[0].plan.id_types:
        raise RunConflictError(
            f"{job.paths.plan}: run {job.paths.run_id!r} was planned without ranking.per_group, so the groups of its "
            "documents are not known; use another --run-id: stored scores are reused"
        )
    # Bounds and thresholds may differ from an earlier attempt's: the file has those of the last one.
    write_config(storage, job.paths, job.config_yaml)
    forecasts = forecast_stages(runner, storage, job, planned)
    for number, of_stage in enumerate(forecasts if "plan" in steps else (), start=1):
        _log_stage(job, number)
        log_forecast(of_stage)
    summary = {"run_id": job.paths.run_id, "stages": list(steps)} | _forecast_summary(job, forecasts)
    summary |= {"warnings": list(job.warnings)} if job.warnings else {}
    if "score" in steps:
        with about(stage="score"):
            planned, scoring = score_stages(runner, storage, job, planned)
        figures = [of_stage.as_dict() for of_stage in scoring]
        summary |= _forecast_summary(job, forecast_stages(runner, storage, job, planned))
        summary |= {name: sum(of_stage[name] for of_stage in figures) for name in figures[0]}
        for of_stage, its_figures, stage in zip(summary.get("passes", ()), figures, planned, strict=False):
            of_stage |= {**its_figures, **stage.guarantee(storage)}
    if "publish" in steps:
        with about(stage="publish"):
            if len(planned) < len(job.stages):
                raise _not_planned(job, planned)
            for stage in planned:
                check_scored(storage, stage.paths, stage.plan)
            scored = ScoredRun(job.scorer, planned, job.rule, job.warnings, job.ranked_table)
            manifest, publication = rank_and_publish(runner, storage, scored, job.audit)
            table = _write_table(storage, job, manifest, publication)
        summary |= {**_outcome(storage, job, manifest, publication), **table}
    return _timed(summary, started)


def already_published(storage: Storage, job: Rerank) -> dict[str, Any] | None:
    """The summary of a run that is published already, for which no Spark need start; None when it is not.

    Raises:
        RunConflictError: it has another scorer, other tables or another ranking.
    """
    started = time.monotonic()
    manifest = read_manifest(storage, job.paths.output, job.paths.run_id)
    if manifest is None:
        return None
    with naming_differences(storage, job.paths, job.config_yaml):
        if manifest["scorer"] != job.scorer:
            raise RunConflictError(
                f"{job.paths.manifest}: run {job.paths.run_id!r} is published and was made by scorer "
                f"{manifest['scorer']}, not {job.scorer}; use another --run-id"
            )
    check_settings(storage, job.paths, job.config_yaml, published=True)
    publication = publish(storage, job.paths)  # an earlier attempt may have died before the pointer moved
    if publication.published:
        logger.info("run %s is published already: nothing to do", job.paths.run_id)
    outcome = {**_outcome(storage, job, manifest, publication), **_write_table(storage, job, manifest, publication)}
    return _timed({"run_id": job.paths.run_id, **outcome, "model_loads": 0}, started)


def check_start(storage: Storage, job: Rerank, steps: Collection[str]) -> None:
    """Check what can be checked before the run announces itself, so that a run that cannot start leaves nothing.

    Raises:
        RunConflictError: the run was planned from something else, has not been planned, or lacks scores.
        SchemaError, StorageError: a table cannot be read as the contract says.
    """
    check_settings(storage, job.paths, job.config_yaml)
    if "plan" in steps:
        if load_plan(storage, job.paths) is None:
            check_tables(storage, job.tables, with_group_ids=job.rule.per_group is not None)
        return
    with naming_differences(storage, job.paths, job.config_yaml):
        planned = planned_stages(storage, job)
    if "score" not in steps:
        for stage in planned:
            check_scored(storage, stage.paths, stage.plan)


def table_rows(storage: Storage, job: Rerank) -> int:
    """Rows of the larger of candidates and documents, by the run's plan or by the tables' footers.

    Raises:
        SchemaError, StorageError: a table cannot be read.
    """
    tables = {job.tables.candidates: CANDIDATES, job.tables.documents: DOCUMENTS}
    if (plan := load_plan(storage, job.paths)) is not None:
        return max(int(plan.inputs[name]["rows"]) for name in ("candidates", "documents"))
    snapshots = [(resolve(storage, address), schema) for address, schema in tables.items()]
    if any(table.schema is None and len(table.files) > _SMALL_TABLE_FILES for table, _ in snapshots):
        return sys.maxsize
    files = (fragments(storage, *table, whole=lambda file: True) for table in snapshots)
    return max(sum(fragment.rows for fragment in of_table) for of_table in files)


def planned_stages(storage: Storage, job: Rerank, runner: Runner | None = None) -> list[PlannedStage]:
    """The stages that have a plan; with a runner those that have none are planned, up to the first that waits for the
    scores of the stage before it.

    Raises:
        RunConflictError: not even the first has one, or one was planned from something else.
        SchemaError, StorageError: a table cannot be read.
    """
    first = job.stages[0]
    if runner is None:
        plan = load_plan(storage, job.paths)
    else:
        logger.info("plan: reading the keys of %s", job.tables.candidates)
        plan = ensure_plan(runner, storage, job.paths, job.tables, first.scorer, first.limits)
    if plan is None:
        raise RunConflictError(f"{job.paths.plan}: run {job.paths.run_id!r} has no plan yet; run --stage plan first")
    if plan.scorer != first.scorer:
        raise RunConflictError(
            f"{job.paths.plan}: planned for scorer {plan.scorer}, but this config's model is {first.scorer}; "
            "use the same model section in every step"
        )
    storage.pin(plan.inputs, asdict(job.tables))
    planned = [PlannedStage(first, job.paths, plan)]
    for stage in job.stages[1:]:
        if runner is not None and not stage.waits:
            planned.append(ensure_next_stage(runner, storage, job.tables, planned, stage))
        elif (following := find_next_stage(storage, planned, stage)) is not None:
            planned.append(following)
        else:
            break
    return planned


def score_stages(
    runner: Runner, storage: Storage, job: Rerank, planned: Sequence[PlannedStage]
) -> tuple[list[PlannedStage], list[ScoringSummary]]:
    """Score every stage, in order; a stage that waits for the one before it is planned when its turn comes."""
    planned, summaries = list(planned), []
    for number in range(1, len(job.stages) + 1):
        if number > len(planned):
            with about(stage="plan"):
                planned.append(ensure_next_stage(runner, storage, job.tables, planned, job.stages[number - 1]))
        _log_stage(job, number)
        summaries.append(_score_stage(runner, storage, job, (planned[number - 1], planned[0])))
    return planned, summaries


def forecast_stages(
    runner: Runner, storage: Storage, job: Rerank, planned: Sequence[PlannedStage]
) -> list[dict[str, Any]]:
    """The cost of each stage by its plan; bounds where the plan waits for another stage's scores.

    Raises:
        RunConflictError: a stage that need not wait has not been planned.
    """
    forecasts = [forecast(of.plan, of.stage.parameters, job.calibration) | of.stage.lists(of.plan) for of in planned]
    for number, stage in enumerate(job.stages[len(planned) :], start=len(planned) + 1):
        if not stage.waits:
            raise _not_planned(job, planned)
        bounds = cost_bounds(runner, storage, job.tables, planned[0], job.stages[:number])
        forecasts.append(forecast_between(bounds, stage.parameters, job.calibration) | stage.lists())
    return forecasts


def _score_stage(
    runner: Runner, storage: Storage, job: Rerank, stages: tuple[PlannedStage, PlannedStage]
) -> ScoringSummary:
    """Score a stage of a run, given with the run's first."""
    planned, first = stages
    paths, plan, stage = planned.paths, planned.plan, planned.stage
    verify_plan_files(storage, paths, plan)
    sources = sources_address(first.paths, first.plan.attempt)
    units = join(planned.folder, "units")
    slowest_s = longest_seconds(job.calibration, stage.parameters, plan.largest_unit)
    deadline = Deadline(stage.unit_deadline_s, DEADLINE_FACTOR * slowest_s, min(2.0, stage.unit_deadline_s / 4))
    scoring = ScoringJob(paths.output, plan.scorer, units, sources, stage.device, stage.factory, deadline)
    scoring = replace(scoring, max_image_bytes=stage.max_image_bytes, encoder=stage.limits.encoder)
    summary = score_units(runner, storage, scoring, planned_units(storage, paths, plan))
    summary.log(None if stage.limits.listwise is None else plan.lists - plan.reused_lists)
    if summary.existing < summary.units or not summary.units:
        address = join(paths.plan, SCORING)
        before = read_json(storage, address) or {}
        gpus = sorted({*before.get("gpus", ()), *summary.gpus})  # earlier attempts' too
        storage.replace(address, json_bytes(summary.as_dict() | ({"gpus": gpus} if gpus else {})))
    return summary


def _not_planned(job: Rerank, planned: Sequence[PlannedStage]) -> RunConflictError:
    """For the stage after those planned: a cascade's are all planned once all but the last have been scored."""
    number, step = len(planned) + 1, "score" if job.stages[len(planned)].waits else "plan"
    return RunConflictError(
        f"{job.paths.plan}: stage {number} of run {job.paths.run_id!r} has no plan yet; run --stage {step} first"
    )


def _log_stage(job: Rerank, number: int) -> None:
    """Name the stage that the next lines are about, where there are several."""
    if len(job.stages) > 1:
        stage = job.stages[number - 1]
        pairs = f"top {stage.top} of each query" if stage.top else "all pairs"
        if (keep := stage.keep) is not None:
            pairs = "all pairs of a sample of queries" if stage.sampled else f"what it takes to keep {keep}"
        logger.info("stage %d of %d: %s, %s", number, len(job.stages), stage.model, pairs)


def _forecast_summary(job: Rerank, forecasts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The run's forecast for its summary: the stage's, or those of several and their sums."""
    if len(job.stages) == 1:
        return dict(forecasts[0])
    names = [{"scorer": stage.scorer, "model": stage.model, **stage.selection} for stage in job.stages]
    stages = [{**name, **of_stage} for name, of_stage in zip(names, forecasts, strict=True)]
    return {**total_forecast(forecasts), "passes": [{"pass": n, **stage} for n, stage in enumerate(stages, start=1)]}


def _outcome(
    storage: Storage, job: Rerank, manifest: Mapping[str, Any], publication: Publication | None
) -> dict[str, Any]:
    """What the run has become. `published`: the pointer names it. `superseded_by`: the run that it names instead, where
    this one is complete and that one was published after it. `current`: the run that readers see."""
    counts = manifest["counts"]
    names = ["candidates", "duplicates", "scored", "reused", "rejected", "ranked", "truncated"]
    names += ["beyond_depth", "beyond_group", "collapsed"]
    failed = [check["name"] for check in manifest["audit"] if check["passed"] is False]
    published = publication is not None and publication.published
    current = publication.current if publication else (current_run(storage, job.paths.output) or {}).get("run_id")
    return {name: counts.get(name, 0) for name in names} | {
        "published": published, "current": current,
        "superseded_by": None if publication is None or published else publication.current,
        "failed_audits": failed, "rejected_by_reason": manifest["rejected"],
        "audit": manifest["audit"], "metrics": manifest.get("metrics"), "warnings": manifest.get("warnings", []),
    }  # fmt: skip


def _write_table(
    storage: Storage, job: Rerank, manifest: Mapping[str, Any], publication: Publication | None
) -> dict[str, Any]:
    """Write a published run's rows to the job's table. After the pointer has moved: a run that dies between the two is
    published, and the same command writes the rows."""
    table = job.ranked_table
    if table is None or publication is None:
        return {}
    if not publication.published and not table.append:  # the later run's rows are there, or to come
        return {"ranked_table": {"table": table.address, "snapshot": None}}
    return {"ranked_table": write_table(storage, job.paths, manifest, table)}


def _timed(summary: dict[str, Any], started: float) -> dict[str, Any]:
    """The summary with this attempt's wall time, and the pairs that it scored itself a second."""
    seconds = time.monotonic() - started
    pace = summary.get("pairs", 0) / seconds if seconds else 0.0
    return summary | {"seconds": round(seconds, 3), "pairs_per_second": round(pace, 3)}
