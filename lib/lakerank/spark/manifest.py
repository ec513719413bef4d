"""A run's manifest: its scorer and inputs, the files it consists of, the results by count, and its metrics."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import lakerank
from lakerank.audit import Check, RunCounts
from lakerank.lake.storage import Storage
from lakerank.spark.rank.combine import FusionRule
from lakerank.spark.rank.write import RankRule
from lakerank.spark.stage import PlannedStage


@dataclass(frozen=True, slots=True)
class ScoredRun:
    """A run whose stages have been scored. `reports`: each stage's model, and the figures of its planning and scoring.

    Steps may run in processes of their own, and more than once: a report is of the attempt that did the work.
    """

    scorer: str
    stages: Sequence[PlannedStage]
    rule: RankRule | FusionRule
    reports: Sequence[Mapping[str, Any]]


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


def manifest_of(
    storage: Storage, run: ScoredRun, ranked: Ranked, checks: Sequence[Check], seconds: Mapping[str, float]
) -> dict[str, Any]:
    """The manifest of a run that has been ranked and audited. With several stages `passes` has the figures of each.

    Args:
        seconds: of the steps of this process.
    """
    stages, plan = run.stages, run.stages[0].plan
    counts = asdict(ranked.counts)
    histogram = counts.pop("histogram")
    several = len(stages) > 1
    manifest = {
        "run_id": stages[0].paths.run_id,
        "published_at": datetime.now(UTC).isoformat(timespec="microseconds"),
        "lakerank": lakerank.__version__,
        "scorer": run.scorer,
        "ranking": asdict(run.rule),
        "counts": {**counts, "scored": ranked.scored, "reused": ranked.reused, "duplicates": plan.duplicates},
        "labels": ranked.labels,
        "rejected": ranked.reasons,
        "audit": [check.as_dict() for check in checks],
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
        "histogram": histogram,
        "metrics": _metrics(run, ranked, seconds),
        **({"passes": _stages(storage, run, ranked)} if several else run.reports[0]),
    }
    json.dumps(manifest, allow_nan=False)  # a manifest that cannot be written must fail before anything is published
    return manifest


def _stages(storage: Storage, run: ScoredRun, ranked: Ranked) -> list[dict[str, Any]]:
    """Each stage's plan, results and figures."""
    return [
        {
            "pass": number,
            "scorer": planned.plan.scorer,
            "top": planned.stage.top,
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
            **planned.named_units(storage),
        }
        for number, (planned, results, report) in enumerate(
            zip(run.stages, ranked.by_stage, run.reports, strict=True), start=1
        )
    ]


def _metrics(run: ScoredRun, ranked: Ranked, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Wall seconds by step, scoring speed, model loads, tokens and bytes; null: no attempt left the figure.

    Figures of several stages are added up.
    """
    pairs, scoring_seconds = (_sum(run.reports, "scoring", name) for name in ("pairs", "seconds"))
    return {
        "seconds": {"plan": _sum(run.reports, "planning", "seconds"), "score": scoring_seconds, **seconds},
        "pairs_per_second": pairs / scoring_seconds if pairs and scoring_seconds else None,
        "model_loads": _sum(run.reports, "scoring", "model_loads"),
        "tokens": {
            "forecast": sum(stage.plan.cost for stage in run.stages),
            "computed": _sum(run.reports, "scoring", "tokens_computed"),
            "pairwise": _sum(run.reports, "scoring", "tokens_pairwise"),
        },
        "bytes": {
            **{name: table["bytes"] for name, table in run.stages[0].plan.inputs.items()},
            "ranked": _bytes(ranked.ranked_files),
            "rejected": _bytes(ranked.rejected_files),
        },
    }


def _sum(reports: Sequence[Mapping[str, Any]], step: str, name: str) -> Any:
    """A figure of all stages; null where one of them left none."""
    figures = [(report.get(step) or {}).get(name) for report in reports]
    return None if None in figures else sum(figures)


def _bytes(files: Iterable[Mapping[str, Any]]) -> int:
    return sum(file["bytes"] for file in files)
