"""What a run will cost, before it does: each pass, and all together; into the summary, and as lines of the log."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from lakerank.cost import Calibration, device_seconds, tflop
from lakerank.spark.plan.plan import Plan
from lakerank.spark.plan.upper_bound import Bound

logger = logging.getLogger(__name__)

#: Figures of passes that are not added up: those of the candidates are the first's, of the largest unit the largest.
_OF_THE_FIRST = ("candidates", "duplicates", "rejected", "dropped", "forecast_device", "published")
_LARGEST = ("largest_unit_over_mean", "forecast_read_amplification")


def forecast(plan: Plan, parameters: int, calibration: Calibration | None) -> dict[str, Any]:
    """What a plan says that scoring it will cost."""
    fetching = plan.fetch_bytes / calibration.fetch_bytes_per_second / 3600 if calibration else None
    return {
        "candidates": plan.candidates,
        "duplicates": plan.duplicates,
        "new": plan.new,
        "reused": plan.reused,
        "rejected": plan.rejected,
        "dropped": plan.dropped,
        "units": plan.units,
        "forecast_documents": plan.new_documents,
        "forecast_tokens": plan.cost,
        "forecast_tokens_pairwise": plan.pairwise_cost,
        "forecast_patches": plan.patches,
        "forecast_fetch_bytes": plan.fetch_bytes,
        "forecast_read_amplification": round(plan.read_bytes / plan.fetch_bytes, 3) if plan.fetch_bytes else None,
        **_work(plan.cost, parameters, calibration),
        "forecast_fetch_hours": None if fetching is None else round(fetching, 4),
        "largest_unit_over_mean": round(plan.largest_unit * plan.units / plan.cost, 3) if plan.cost else 0.0,
        "published": False,
    }


def forecast_at_most(bound: Bound, parameters: int, calibration: Calibration | None) -> dict[str, Any]:
    """The most that a pass whose candidates are not known yet can cost; `reused` and the like are not known either."""
    return {
        "at_most": True,
        "candidates": bound.pairs,
        "new": bound.pairs,
        "forecast_documents": bound.documents,
        "forecast_tokens": bound.cost,
        "forecast_tokens_pairwise": bound.pairwise_cost,
        **_work(bound.cost, parameters, calibration),
    }


def _work(tokens: int, parameters: int, calibration: Calibration | None) -> dict[str, Any]:
    hours = device_seconds(calibration, parameters, tokens) / 3600 if calibration else None
    return {
        "forecast_tflop": round(tflop(parameters, tokens), 3),
        "forecast_device": f"{calibration.device} {calibration.dtype}" if calibration else None,
        "forecast_device_hours": None if hours is None else round(hours, 4),
    }


def in_all(passes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Forecasts of passes together: counts of the candidates as they are, work added up."""
    total = dict(passes[0])
    for name, value in passes[0].items():
        known = [one[name] for one in passes if one.get(name) is not None]
        if name in _LARGEST:
            total[name] = max(known, default=None)
        elif name not in _OF_THE_FIRST:
            total[name] = sum(known) if known else None
        if isinstance(value, float) and name not in _LARGEST:
            total[name] = round(total[name], 4)
    return total


def log_forecast(found: Mapping[str, Any]) -> None:
    """A pass's forecast in a few lines."""
    if found.get("at_most"):
        logger.info(
            "plan: at most %d pairs, %d documents, %d tokens (%d pair by pair), %.3f TFLOP; known once the pass before "
            "has scored",
            *(found[name] for name in ("new", "forecast_documents", "forecast_tokens", "forecast_tokens_pairwise")),
            found["forecast_tflop"],
        )
    else:
        _log_plan(found)
    if found["forecast_device_hours"] is not None:
        logger.info(
            "plan: about %.3g hours of one %s, and %.3g of one task's fetching beside it",
            *(found[f"forecast_{name}"] for name in ("device_hours", "device")),
            found.get("forecast_fetch_hours") or 0.0,
        )


def _log_plan(found: Mapping[str, Any]) -> None:
    logger.info(
        "plan: %d candidates: %d new, %d reused, %d rejected, %d listed twice; %d dropped since the last published run",
        *(found[name] for name in ("candidates", "new", "reused", "rejected", "duplicates", "dropped")),
    )
    logger.info(
        "plan: %d documents, %d tokens (%d pair by pair), %d patches, %.3f TFLOP; %d units, largest %.2f of the mean",
        *(found[f"forecast_{name}"] for name in ("documents", "tokens", "tokens_pairwise", "patches", "tflop")),
        *(found[name] for name in ("units", "largest_unit_over_mean")),
    )
    logger.info(
        "plan: %.3f GB to fetch, in row groups that hold %.2f times as much",
        found["forecast_fetch_bytes"] / 1e9,
        found["forecast_read_amplification"] or 1,
    )
