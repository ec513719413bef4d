"""The stages of a run: one reranker, or several that make a cascade or an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from lakerank.fingerprint import fingerprint
from lakerank.lake.runs import RunPaths
from lakerank.lake.storage import Storage
from lakerank.plan.plan import Plan, PlanLimits, plan_folder, planned_units, reused_units
from lakerank.ranking import Fusion
from lakerank.spark.rank.lists import Results
from lakerank.spark.score import RerankerFactory


@dataclass(frozen=True, slots=True)
class Stage:
    """One reranker of a run.

    `model` is the checkpoint's path, for people. `top`: it scores only so many of each query's best in the stage
    before; None: every pair of the run.
    """

    scorer: str
    model: str
    parameters: int
    logit_bias: float
    factory: RerankerFactory
    device: str
    limits: PlanLimits
    top: int | None = None


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage with its plan, and where the plan's files are."""

    stage: Stage
    paths: RunPaths
    plan: Plan

    @property
    def folder(self) -> str:
        """The folder of the plan that counts."""
        return plan_folder(self.paths, self.plan.attempt)

    def results(self, storage: Storage) -> Results:
        """Where the stage's results are, once it has been scored."""
        units = planned_units(storage, self.paths, self.plan)
        return Results(storage, self.paths.output, self.plan.scorer, self.folder, units, self.plan.new)

    def named_units(self, storage: Storage) -> dict[str, list[str]]:
        """The unit files that hold the stage's scores: its own, and those of earlier runs."""
        units = list(planned_units(storage, self.paths, self.plan))
        return {"units": units, "reused_units": reused_units(storage, self.paths, self.plan)}


def run_scorer(stages: Sequence[Stage], fusion: Fusion | None) -> str:
    """A run's scorer: the one stage's fingerprint, or one of all stages' and how they are combined."""
    if len(stages) == 1:
        return stages[0].scorer
    scorers = [{"scorer": stage.scorer, "top": stage.top} for stage in stages]
    return fingerprint({"passes": scorers, "fusion": None if fusion is None else asdict(fusion)})
