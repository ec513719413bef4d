"""A run's manifest: what it was made by and from, what it consists of, what was found, and what it took."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import lakerank
from lakerank.audit import Check, RunCounts
from lakerank.lake.storage import Storage
from lakerank.spark.metrics import run_metrics
from lakerank.spark.stage import PlannedStage


@dataclass(frozen=True, slots=True)
class Ranked:
    """What ranking wrote. `by_pass`: each pass's results by reason ("": scored), where there are several passes."""

    counts: RunCounts
    scored: int
    reused: int
    labels: Mapping[str, int]
    reasons: Mapping[str, int]
    ranked_files: tuple[Mapping[str, Any], ...]
    rejected_files: tuple[Mapping[str, Any], ...]
    golden: Mapping[tuple[str, str], float]
    by_pass: tuple[Mapping[str, int], ...] = ()


def manifest_of(
    storage: Storage,
    scorer: str,
    passes: Sequence[PlannedStage],
    ranking: Mapping[str, Any],
    ranked: Ranked,
    checks: Sequence[Check],
    took: Sequence[Mapping[str, Any]],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """The manifest of a run that has been ranked and audited.

    Of a run of several passes `passes` says what each consists of and took; what stands beside it is of them all.

    Args:
        took: of each pass its model, and what planning and scoring it took.
        seconds: of the stages of this process.
    """
    plan = passes[0].plan
    counts = asdict(ranked.counts)
    histogram = counts.pop("histogram")
    several = len(passes) > 1
    manifest = {
        "run_id": passes[0].paths.run_id,
        "published_at": datetime.now(UTC).isoformat(timespec="microseconds"),
        "lakerank": lakerank.__version__,
        "scorer": scorer,
        "ranking": ranking,
        "counts": {**counts, "scored": ranked.scored, "reused": ranked.reused, "duplicates": plan.duplicates},
        "labels": ranked.labels,
        "rejected": ranked.reasons,
        "audit": [check.as_dict() for check in checks],
        "inputs": plan.inputs,
        "plan": {
            "attempt": plan.attempt,
            "dropped": plan.dropped,
            "cost": sum(one.plan.cost for one in passes),
            "pairwise_cost": sum(one.plan.pairwise_cost for one in passes),
        },
        **({} if several else passes[0].named_units(storage)),
        "ranked_files": list(ranked.ranked_files),
        "rejected_files": list(ranked.rejected_files),
        "histogram": histogram,
        "metrics": run_metrics([one.plan for one in passes], took, seconds, ranked.ranked_files, ranked.rejected_files),
        **({"passes": _passes(storage, passes, ranked, took)} if several else took[0]),
    }
    json.dumps(manifest, allow_nan=False)  # a manifest that cannot be written must fail before anything is published
    return manifest


def _passes(
    storage: Storage, passes: Sequence[PlannedStage], ranked: Ranked, took: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """What each pass consists of, found and took."""
    return [
        {
            "pass": number,
            "scorer": one.plan.scorer,
            "top": one.stage.top,
            "attempt": one.plan.attempt,
            "counts": {
                "candidates": one.plan.candidates,
                "new": one.plan.new,
                "reused": one.plan.reused,
                "scored": found.get("", 0),
            },
            "rejected": {reason: count for reason, count in sorted(found.items()) if reason},
            "cost": one.plan.cost,
            "pairwise_cost": one.plan.pairwise_cost,
            **about,
            **one.named_units(storage),
        }
        for number, (one, found, about) in enumerate(zip(passes, ranked.by_pass, took, strict=True), start=1)
    ]
