"""What a run took, in numbers: as its manifest keeps them and the job's last line says them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lakerank.spark.plan import Plan


def run_metrics(
    plan: Plan,
    planning: Mapping[str, Any] | None,
    scoring: Mapping[str, Any] | None,
    seconds: Mapping[str, float],
    ranked_files: Iterable[Mapping[str, Any]],
    rejected_files: Iterable[Mapping[str, Any]],
) -> dict[str, Any]:
    """Wall seconds by stage, pace of scoring, model loads, tokens and bytes. null: no attempt left the figure.

    Stages may run in processes of their own, and more than once: a figure is of the attempt that did the stage's work.

    Args:
        planning, scoring: what those stages left in the run's folder.
        seconds: of the stages of this process.
    """
    scored = scoring or {}
    pairs, scoring_seconds = scored.get("pairs"), scored.get("seconds")
    return {
        "seconds": {"plan": (planning or {}).get("seconds"), "score": scoring_seconds, **seconds},
        "pairs_per_second": pairs / scoring_seconds if pairs and scoring_seconds else None,
        "model_loads": scored.get("model_loads"),
        "tokens": {
            "forecast": plan.cost,
            "computed": scored.get("tokens_computed"),
            "pairwise": scored.get("tokens_pairwise"),
        },
        "bytes": {
            **{name: table["bytes"] for name, table in plan.inputs.items()},
            "ranked": sum(one["bytes"] for one in ranked_files),
            "rejected": sum(one["bytes"] for one in rejected_files),
        },
    }
