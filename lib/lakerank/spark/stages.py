"""The passes of a run, stage by stage: planned as far as they can be, scored one after the other, found for ranking."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from pyspark.sql import SparkSession

from lakerank.cost import Calibration
from lakerank.errors import RunConflictError
from lakerank.lake.runs import RunPaths, read_json
from lakerank.lake.storage import Storage, join
from lakerank.logs import about
from lakerank.spark.plan.builder import ensure_plan
from lakerank.spark.plan.forecast import forecast, forecast_at_most
from lakerank.spark.plan.next_stage import ensure_bound, ensure_later_plan, find_later_plan
from lakerank.spark.plan.plan import (
    Plan,
    Tables,
    load_plan,
    planned_units,
    sources_address,
    units_folder,
    verify_plan_files,
)
from lakerank.spark.runtime.session import unmanaged_gpus
from lakerank.spark.score import ScoringJob, ScoringSummary, score_units
from lakerank.spark.stage import PlannedStage, Stage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Staging:
    """A run's passes, and what they are made with."""

    spark: SparkSession
    storage: Storage
    paths: RunPaths
    tables: Tables
    stages: Sequence[Stage]

    def plan(self) -> list[PlannedStage]:
        """Plan the passes, each unless it has been: all but those that must wait for the scores of another.

        Raises:
            RunConflictError: one was planned from something else.
            SchemaError, StorageError: a table cannot be read.
        """
        logger.info("plan: reading the keys of %s", self.tables.candidates)
        one = self.stages[0]
        planning = partial(ensure_plan, self.spark, self.storage, self.paths, self.tables, one.scorer, one.limits)
        first = self._timed(1, planning)
        return self._with_later([PlannedStage(one, self.paths, first)], plan_all=True)

    def planned(self) -> list[PlannedStage]:
        """The passes that have been planned.

        Raises:
            RunConflictError: not even the first has been, or one was planned from something else.
        """
        found = load_plan(self.storage, self.paths)
        if found is None:
            raise RunConflictError(
                f"{self.paths.plan}: run {self.paths.run_id!r} has no plan yet; run --stage plan first"
            )
        if found.scorer != self.stages[0].scorer:
            raise RunConflictError(
                f"{self.paths.plan}: planned for scorer {found.scorer}, but this config's model is "
                f"{self.stages[0].scorer}; use the same model section in every stage"
            )
        return self._with_later([PlannedStage(self.stages[0], self.paths, found)], plan_all=False)

    def score(self, planned: Sequence[PlannedStage]) -> tuple[list[PlannedStage], list[ScoringSummary]]:
        """Score every pass, in order; those that had to wait are planned when their turn comes."""
        done: list[PlannedStage] = []
        summaries = []
        for number, one in enumerate(self.stages, start=1):
            if number <= len(planned):
                done.append(planned[number - 1])
            elif one.top is None:
                raise self._not_planned(number, "plan")
            else:
                with about(stage="plan"):
                    done.append(self._plan_later(done, one))
            self.tell(number)
            summaries.append(self._score(done[-1], done[0]))
        return done, summaries

    def whole(self, planned: Sequence[PlannedStage]) -> Sequence[PlannedStage]:
        """The passes, when all are planned, as they are once all but the last have scored.

        Raises:
            RunConflictError: one is not.
        """
        if len(planned) < len(self.stages):
            waits = self.stages[len(planned)].top is not None
            raise self._not_planned(len(planned) + 1, "score" if waits else "plan")
        return planned

    def forecasts(self, planned: Sequence[PlannedStage], calibration: Calibration | None) -> list[dict[str, Any]]:
        """What each pass costs by its plan; those that have none yet, at most."""
        found = []
        for number, one in enumerate(self.stages, start=1):
            if number <= len(planned):
                found.append(forecast(planned[number - 1].plan, one.parameters, calibration))
            elif one.top is not None:
                bound = ensure_bound(self.spark, self.storage, self.tables, planned[0], number, one)
                found.append(forecast_at_most(bound, one.parameters, calibration))
        return found

    def tell(self, number: int) -> None:
        """Say which pass the next lines are about, where there are several."""
        one = self.stages[number - 1]
        if len(self.stages) > 1:
            whose = "all pairs" if one.top is None else f"the {one.top} best of each query"
            logger.info("pass %d of %d: %s, %s", number, len(self.stages), one.model, whose)

    def took(self, planned: PlannedStage) -> dict[str, Any]:
        """What the manifest says of a pass: its model, and what its stages left: they may be processes of their own."""
        one = planned.stage
        model = {"parameters": one.parameters, "device": one.device}
        return {
            "model": {"path": one.model, **model} if len(self.stages) > 1 else model,
            "planning": read_json(self.storage, _planning_address(planned.paths)),
            "scoring": read_json(self.storage, _scoring_address(planned.paths)),
        }

    def _with_later(self, planned: list[PlannedStage], plan_all: bool) -> list[PlannedStage]:
        """The passes after the first as far as there are plans, or as they can be made without more scores."""
        for one in self.stages[1:]:
            later = self._plan_later(planned, one) if plan_all and one.top is None else self._find_later(planned, one)
            if later is None:
                break
            planned.append(later)
        return planned

    def _plan_later(self, before: Sequence[PlannedStage], one: Stage) -> PlannedStage:
        paths = self.paths.of_stage(len(before) + 1)
        planning = partial(ensure_later_plan, self.spark, self.storage, self.tables, before, one)
        return PlannedStage(one, paths, self._timed(paths.stage, planning))

    def _find_later(self, before: Sequence[PlannedStage], one: Stage) -> PlannedStage | None:
        plan = find_later_plan(self.storage, before, one)
        return None if plan is None else PlannedStage(one, self.paths.of_stage(len(before) + 1), plan)

    def _timed(self, number: int, planning: Callable[[], Plan]) -> Plan:
        started = time.monotonic()
        plan = planning()
        # Only once: an attempt that finds the plan there would say that planning takes no time.
        seconds = json.dumps({"seconds": time.monotonic() - started}).encode()
        self.storage.create(_planning_address(self.paths.of_stage(number)), seconds)
        return plan

    def _score(self, planned: PlannedStage, first: PlannedStage) -> ScoringSummary:
        paths, plan, one = planned.paths, planned.plan, planned.stage
        verify_plan_files(self.storage, paths, plan)
        scoring = ScoringJob(
            paths.output,
            plan.scorer,
            units_folder(paths, plan.attempt),
            sources_address(first.paths, first.plan.attempt),
            one.device,
            one.factory,
        )
        tasks = unmanaged_gpus(self.spark, one.device) or None
        summary = score_units(self.spark, self.storage, scoring, planned_units(self.storage, paths, plan), tasks=tasks)
        log_scoring(summary)
        if summary.found < summary.units or not summary.units:
            self.storage.replace(_scoring_address(paths), json.dumps(asdict(summary)).encode())
        return summary

    def _not_planned(self, number: int, stage: str) -> RunConflictError:
        return RunConflictError(
            f"{self.paths.plan}: pass {number} of run {self.paths.run_id!r} has no plan yet; run --stage {stage} first"
        )


def log_scoring(summary: ScoringSummary) -> None:
    """What scoring took, in a line or two."""
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


def scored_in_all(summaries: Sequence[ScoringSummary]) -> dict[str, Any]:
    """What scoring took, passes added up."""
    each = [asdict(summary) for summary in summaries]
    return {name: sum(one[name] for one in each) for name in each[0]}


def _scoring_address(paths: RunPaths) -> str:
    return join(paths.plan, "scoring.json")


def _planning_address(paths: RunPaths) -> str:
    return join(paths.plan, "planning.json")
