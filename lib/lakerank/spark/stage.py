"""The passes of a run: each scorer's share of it, in the order they are made, and how they become one list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from lakerank.fingerprint import fingerprint
from lakerank.fusion import Fusion
from lakerank.lake.runs import RunPaths
from lakerank.lake.storage import Storage
from lakerank.spark.plan.plan import Plan, PlanLimits, plan_folder, planned_units, reused_units
from lakerank.spark.rank.lists import Results
from lakerank.spark.score import RerankerFactory


@dataclass(frozen=True, slots=True)
class Stage:
    """One scorer's share of a run.

    `model` is the checkpoint's path, for people. `top`: only so many of each query's best in the pass before are
    scored; None: every pair of the run.
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
    """A pass with its plan, and where that lies."""

    stage: Stage
    paths: RunPaths
    plan: Plan

    @property
    def folder(self) -> str:
        """The folder of the plan that counts."""
        return plan_folder(self.paths, self.plan.attempt)

    def results(self, storage: Storage) -> Results:
        """Where the pass's results lie, once it has been scored."""
        units = planned_units(storage, self.paths, self.plan)
        return Results(storage, self.paths.output, self.plan.scorer, self.folder, units, self.plan.new)

    def named_units(self, storage: Storage) -> dict[str, list[str]]:
        """The unit files that hold the pass's scores: its own, and those of earlier runs."""
        units = list(planned_units(storage, self.paths, self.plan))
        return {"units": units, "reused_units": reused_units(storage, self.paths, self.plan)}


def run_scorer(passes: Sequence[Stage], fusion: Fusion | None) -> str:
    """What a run is said to be made by: its scorer's fingerprint, or one of all scorers and how they are combined."""
    if len(passes) == 1:
        return passes[0].scorer
    each = [{"scorer": one.scorer, "top": one.top} for one in passes]
    return fingerprint({"passes": each, "fusion": None if fusion is None else asdict(fusion)})
