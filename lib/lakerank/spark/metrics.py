"""What a run took, in numbers: as its manifest keeps them and the job's last line says them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lakerank.spark.plan.plan import Plan


def run_metrics(
    plans: Sequence[Plan],
    took: Sequence[Mapping[str, Any]],
    seconds: Mapping[str, float],
    ranked_files: Iterable[Mapping[str, Any]],
    rejected_files: Iterable[Mapping[str, Any]],
) -> dict[str, Any]:
    """Wall seconds by stage, pace of scoring, model loads, tokens and bytes. null: no attempt left the figure.

    Stages may run in processes of their own, and more than once: a figure is of the attempt that did the stage's work.
    Figures of several passes are added up.

    Args:
        plans: of the passes.
        took: of each pass `planning` and `scoring`, what those left in the run's folder.
        seconds: of the stages of this process.
    """
    pairs, scoring_seconds = (_sum(took, "scoring", name) for name in ("pairs", "seconds"))
    return {
        "seconds": {"plan": _sum(took, "planning", "seconds"), "score": scoring_seconds, **seconds},
        "pairs_per_second": pairs / scoring_seconds if pairs and scoring_seconds else None,
        "model_loads": _sum(took, "scoring", "model_loads"),
        "tokens": {
            "forecast": sum(plan.cost for plan in plans),
            "computed": _sum(took, "scoring", "tokens_computed"),
            "pairwise": _sum(took, "scoring", "tokens_pairwise"),
        },
        "bytes": {
            **{name: table["bytes"] for name, table in plans[0].inputs.items()},
            "ranked": sum(one["bytes"] for one in ranked_files),
            "rejected": sum(one["bytes"] for one in rejected_files),
        },
    }


def _sum(took: Sequence[Mapping[str, Any]], stage: str, name: str) -> Any:
    """A figure of all passes; null where one of them left none."""
    found = [(one.get(stage) or {}).get(name) for one in took]
    return None if None in found else sum(found)
