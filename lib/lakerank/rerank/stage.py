"""The stages of a run (one reranker, or those of a cascade or an ensemble) and the manifest of their results."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import lakerank
from lakerank.audit import Check, RunCounts, labels_alike
from lakerank.fingerprint import fingerprint
from lakerank.lake.formats.output import OutputTable
from lakerank.lake.runs import RunPaths, read_json
from lakerank.lake.scores import read_reused_units
from lakerank.lake.storage import Storage, join
from lakerank.limits import Limits
from lakerank.plan.guarantee import Promise
from lakerank.plan.plan import Plan, PlanLimits, plan_folder, planned_units
from lakerank.ranking import Fusion
from lakerank.rerank.rank.combine import FusionRule
from lakerank.rerank.rank.lists import Results
from lakerank.rerank.rank.write import RankRule
from lakerank.rerank.score import RerankerFactory

logger = logging.getLogger(__name__)

#: Files in a plan's folder in which steps, maybe other processes, leave their seconds and figures for the manifest.
PLANNING, SCORING = "planning.json", "scoring.json"

#: In the same folder what a stage with a guarantee has learned.
RULE = "rule.json"


@dataclass(frozen=True, slots=True)
class Stage:
    """One reranker of a run, or with `keep` a part of its work.

    `model` is the checkpoint's path, for people. `top`: it scores only so many of each query's best in the stage
    before. `keep`: it scores as many of them as a guarantee needs; `sampled`, a stage before it, scores the queries
    whole that this is learned from. Without either it scores every pair of the run. `unit_deadline_s`: seconds that a
    unit may take at least. `max_image_bytes`: of an image that is read at its address. `caveat`: what is not promised
    of its scores, for the manifest. `allows_instructions`: queries may have some.
    """

    scorer: str
    model: str
    parameters: int
    logit_bias: float
    factory: RerankerFactory
    device: str
    limits: PlanLimits
    top: int | None = None
    unit_deadline_s: float = 600
    max_image_bytes: int = Limits().max_source_bytes
    caveat: str | None = None
    allows_instructions: bool = True
    keep: Promise | None = None
    sampled: bool = False

    @property
    def parts(self) -> tuple[Stage, ...]:
        """The stages that its work is done in: with a promise that its own sample is drawn for, that first."""
        drawn = self.keep is not None and self.keep.from_run is None
        return (replace(self, sampled=True), self) if drawn else (self,)

    @property
    def waits(self) -> bool:
        """Whether its pairs are known only once the stage before it has been scored."""
        return self.top is not None or self.keep is not None

    @property
    def selection(self) -> dict[str, Any]:
        """Which pairs it scores, as manifests and fingerprints have it."""
        keep = {} if self.keep is None else {"keep": self.keep.identity(), "sampled": self.sampled}
        return {"top": self.top, **keep}

    def lists(self, plan: Plan | None = None) -> dict[str, Any]:
        """How it scores lists and by a plan how many, as `listwise`, for manifests; nothing where it scores pairs."""
        if (listwise := self.limits.listwise) is None:
            return {}
        counts = {}
        if plan is not None:
            counts = {"lists": plan.lists, "scored": plan.lists - plan.reused_lists, "reused": plan.reused_lists}
        return {"listwise": {**asdict(listwise), **counts}}


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

    def guarantee(self, storage: Storage) -> dict[str, Any]:
        """What a stage with a guarantee has promised, learned and spared, as `guarantee`; nothing for another stage."""
        if self.stage.keep is None or self.stage.sampled:
            return {}
        rule = read_json(storage, join(self.paths.plan, RULE)) or {}
        figures = {name: value for name, value in rule.items() if name not in ("of", "last")}
        read = self.plan.candidates
        return {"guarantee": figures | {"read": read, "spared": rule["of_pairs"] - rule["sample"]["pairs"] - read}}

    def named_units(self, storage: Storage) -> dict[str, list[str]]:
        """The unit files that hold the stage's scores: its own, and those of earlier runs."""
        units = list(planned_units(storage, self.paths, self.plan))
        return {"units": units, "reused_units": read_reused_units(storage, self.folder)}


@dataclass(frozen=True, slots=True)
class ScoredRun:
    """A run whose stages have been scored; `warnings` are for its manifest, `ranked_table` is where its rows go too."""

    scorer: str
    stages: Sequence[PlannedStage]
    rule: RankRule | FusionRule
    warnings: tuple[str, ...] = ()
    ranked_table: OutputTable | None = None


@dataclass(frozen=True, slots=True)
class Ranked:
    """What ranking wrote. `by_stage`: each stage's results by reason ("": scored), where there are several stages."""

    counts: RunCounts
    scored: int
    reused: int
    labels: Mapping[str, int]
    reasons: Mapping[str, int]
    ranked_files: tuple[Mapping[str, Any], ...]
    rejected_files: tuple[Mapping[str, Any], ...]
    golden: Mapping[tuple[str, str], float]
    by_stage: tuple[Mapping[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Audited:
    """The audit of a run: its checks, the run it was compared with, and the seconds of the steps of this process."""

    checks: Sequence[Check]
    last_run: str | None
    seconds: Mapping[str, float]


def manifest_of(storage: Storage, run: ScoredRun, ranked: Ranked, audited: Audited) -> dict[str, Any]:
    """The manifest of a run that has been ranked and audited. With several stages `passes` has the figures of each."""
    stages, plan, several = run.stages, run.stages[0].plan, len(run.stages) > 1
    reports = [_report(storage, planned) for planned in stages]
    warnings = list(run.warnings)
    if (alike := labels_alike(ranked.labels)) is not None:
        logger.warning("%s", alike)
        warnings.append(alike)
    models = sorted({gpu for report in reports for gpu in (report["scoring"] or {}).get("gpus", ())})
    if len(models) > 1:
        advice = "for the bits of one model give --stage score its GPUs alone, and score again into another lake.output"
        warnings.append(f"scored on GPUs of several models ({', '.join(models)}): last bits may differ; {advice}")
        logger.warning("%s", warnings[-1])
    counts = asdict(ranked.counts)
    histogram = counts.pop("histogram")
    manifest = {
        "run_id": stages[0].paths.run_id,
        "published_at": datetime.now(UTC).isoformat(timespec="microseconds"),
        "lakerank": lakerank.__version__,
        "scorer": run.scorer,
        "ranking": asdict(run.rule),
        "counts": {**counts, "scored": ranked.scored, "reused": ranked.reused}
        | {name: getattr(plan, name) for name in ("duplicates", "shared", "near")},
        "labels": ranked.labels,
        "warnings": warnings,
        "rejected": ranked.reasons,
        "audit": [check.as_dict() for check in audited.checks],
        "last_run": audited.last_run,
        "inputs": plan.inputs,
        "plan": {
            "attempt": plan.attempt,
            "dropped": plan.dropped,
            "cost": sum(stage.plan.cost for stage in stages),
            "pairwise_cost": sum(stage.plan.pairwise_cost for stage in stages),
        },
        **({} if several else stages[0].named_units(storage)),
        "ranked_files": list(ranked.ranked_files),
        "rejected_files": list(ranked.rejected_files),
        **({"ranked_table": asdict(run.ranked_table)} if run.ranked_table else {}),
        "histogram": histogram,
        "metrics": _metrics(stages, reports, ranked, audited.seconds),
        **({"passes": _stages(storage, stages, reports, ranked)} if several else reports[0]),
    }
    json.dumps(manifest, allow_nan=False)  # a manifest that cannot be written must fail before anything is published
    return manifest


def _report(storage: Storage, planned: PlannedStage) -> dict[str, Any]:
    """A stage's model, and the figures of its planning and scoring, by the attempts that did the work."""
    stage, folder = planned.stage, planned.paths.plan
    encoder = {"encoder": stage.limits.encoder} if stage.limits.encoder else {}
    return {
        "model": {"path": stage.model, "parameters": stage.parameters, "device": stage.device, **encoder},
        "planning": read_json(storage, join(folder, PLANNING)),
        "scoring": read_json(storage, join(folder, SCORING)),
    }


def _stages(
    storage: Storage, stages: Sequence[PlannedStage], reports: Sequence[Mapping[str, Any]], ranked: Ranked
) -> list[dict[str, Any]]:
    """Each stage's plan, results and figures."""
    return [
        {
            "pass": number,
            "scorer": planned.plan.scorer,
            **planned.stage.selection,
            **planned.stage.lists(planned.plan),
            "attempt": planned.plan.attempt,
            "counts": {
                "candidates": planned.plan.candidates,
                "new": planned.plan.new,
                "reused": planned.plan.reused,
                "scored": results.get("", 0),
            },
            "rejected": {reason: count for reason, count in sorted(results.items()) if reason},
            "cost": planned.plan.cost,
            "pairwise_cost": planned.plan.pairwise_cost,
            **report,
            **planned.guarantee(storage),
            **planned.named_units(storage),
        }
        for number, (planned, results, report) in enumerate(zip(stages, ranked.by_stage, reports, strict=True), start=1)
    ]


def _metrics(
    stages: Sequence[PlannedStage], reports: Sequence[Mapping[str, Any]], ranked: Ranked, seconds: Mapping[str, float]
) -> dict[str, Any]:
    """Wall seconds by step, scoring speed, model loads, tokens and bytes; null: no attempt left the figure.

    Figures of several stages are added up.
    """

    def total(name: str, step: str = "scoring") -> Any:
        figures = [(report[step] or {}).get(name) for report in reports]
        return None if None in figures else sum(figures)

    pairs, scoring_seconds = total("pairs"), total("seconds")
    return {
        "seconds": {"plan": total("seconds", "planning"), "score": scoring_seconds, **seconds},
        "pairs_per_second": pairs / scoring_seconds if pairs and scoring_seconds else None,
        "model_loads": total("model_loads"),
        "tokens": {
            "forecast": sum(stage.plan.cost for stage in stages),
            "computed": total("tokens_computed"),
            "pairwise": total("tokens_pairwise"),
        },
        "bytes": {
            **{name: table["bytes"] for name, table in stages[0].plan.inputs.items()},
            "ranked": sum(file["bytes"] for file in ranked.ranked_files),
            "rejected": sum(file["bytes"] for file in ranked.rejected_files),
        },
    }


def run_scorer(stages: Sequence[Stage], fusion: Fusion | None) -> str:
    """A run's scorer: the one stage's fingerprint, or one of all stages' and how they are combined."""
    if len(stages) == 1:
        return stages[0].scorer
    scorers = [{"scorer": stage.scorer, **stage.selection} for stage in stages]
    return fingerprint({"passes": scorers, "fusion": None if fusion is None else asdict(fusion)})
