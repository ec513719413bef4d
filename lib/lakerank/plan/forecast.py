"""The forecast of a run's cost, by stage and in total: for the summary, and as lines of the log."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lakerank.cost import Calibration, device_seconds, tflop
from lakerank.logs import duration, scaled
from lakerank.plan.plan import Plan

logger = logging.getLogger(__name__)

#: Figures of stages that are not added up: those of the candidates are the first stage's, others the largest.
_OF_THE_FIRST = ("candidates", "duplicates", "rejected", "dropped", "forecast_device", "published")
_PLAN_COUNTS = ("candidates", "duplicates", "new", "reused", "rejected", "dropped", "units")
_LARGEST = ("largest_unit_over_mean", "forecast_read_amplification")

_AT_MOST_LINES = (
    "plan: at most %(new)d pairs of %(forecast_queries)d %(of)s, %(forecast_documents)d documents, "
    "%(forecast_tokens)d tokens%(pair_by_pair)s, %(work)s; exact once the stage before has been scored",
)
_AT_LEAST_LINE = "plan: at least %(new)d pairs and %(forecast_tokens)d tokens, less what the lake has scores of"
_PLAN_LINES = (
    "plan: %(candidates)d candidates: %(new)d new, %(reused)d reused, %(rejected)d rejected, "
    "%(duplicates)d duplicates; %(dropped)d dropped since the last published run",
    "plan: %(lists)s%(forecast_documents)d documents, %(forecast_tokens)d tokens%(pair_by_pair)s, "
    "%(forecast_patches)d patches, %(work)s; %(units)d units, largest %(largest_unit_over_mean).2f of the mean",
    "plan: %(fetch)s to fetch, in row groups of %(read_amplification).2f times as much",
)
_HOURS_LINE = (
    "plan: about %(device_time)s of one %(forecast_device)s, and %(fetch_time)s of one task's fetching beside it"
)


@dataclass(frozen=True, slots=True)
class CostBounds:
    """The most that scoring some pairs of each query can take, whichever they are and none of them scored yet.

    `pairs`: the top k of each query, or all that it has. `documents`: as many as there are pairs, or all there are.
    `cost`: tokens of the pairs' queries, and of the costliest documents; `pairwise_cost` with a document read again for
    each. `queries` have such pairs. `least_pairs` and `least_cost`: the fewest, with the cheapest documents, where a
    rule that is yet to be learned selects the pairs.
    """

    pairs: int
    documents: int
    cost: int
    pairwise_cost: int
    queries: int
    least_pairs: int | None = None
    least_cost: int | None = None


def costliest(counts: Mapping[int, int], most: int) -> int:
    """Total cost of the `most` costliest of some things, given how many there are of each cost."""
    total = 0
    for cost in sorted(counts, reverse=True):
        taken = min(most, counts[cost])
        total, most = total + cost * taken, most - taken
    return total


def cheapest(counts: Mapping[int, int], least: int) -> int:
    """Total cost of the `least` cheapest of some things, given how many there are of each cost."""
    total = sum(cost * count for cost, count in counts.items())
    return total - costliest(counts, max(0, sum(counts.values()) - least))


def forecast(plan: Plan, parameters: int, calibration: Calibration | None) -> dict[str, Any]:
    """The cost of scoring a plan."""
    fetching = plan.fetch_bytes / calibration.fetch_bytes_per_second / 3600 if calibration else None
    return {
        **{name: getattr(plan, name) for name in _PLAN_COUNTS},
        "forecast_documents": plan.new_documents,
        "forecast_tokens": plan.cost,
        "forecast_tokens_pairwise": plan.pairwise_cost,
        "forecast_patches": plan.patches,
        "forecast_fetch_bytes": plan.fetch_bytes,
        "forecast_read_amplification": round(plan.read_bytes / plan.fetch_bytes, 3) if plan.read_bytes else None,
        **_work(plan.cost, parameters, calibration),
        "forecast_fetch_hours": None if fetching is None else round(fetching, 4),
        "largest_unit_over_mean": round(plan.largest_unit * plan.units / plan.cost, 3) if plan.cost else 0.0,
        "published": False,
    }


def forecast_between(bound: CostBounds, parameters: int, calibration: Calibration | None) -> dict[str, Any]:
    """The forecast of a stage whose candidates are not known yet; nor are `reused` and the like."""
    least = {}
    if bound.least_cost is not None:
        least = {"new": bound.least_pairs, "forecast_tokens": bound.least_cost}
        least |= _work(bound.least_cost, parameters, calibration)
    return {
        "at_most": True,
        **({"at_least": least} if least else {}),
        "candidates": bound.pairs,
        "new": bound.pairs,
        "forecast_queries": bound.queries,
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


def total_forecast(stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The forecast of a run from those of its stages: counts of the candidates as they are, work added up."""
    total = dict(stages[0])
    for name in stages[0]:
        known = [stage[name] for stage in stages if stage.get(name) is not None]
        if name in _LARGEST:
            total[name] = max(known, default=None)
        elif name not in _OF_THE_FIRST:
            total[name] = round(sum(known), 4) if known else None
    if any("at_least" in stage for stage in stages):
        least = [stage.get("at_least", {} if stage.get("at_most") else stage) for stage in stages]
        total["at_least"] = {name: sum(stage.get(name, 0) for stage in least) for name in ("new", "forecast_tokens")}
    return total


def log_forecast(stage: Mapping[str, Any]) -> None:
    """Log a stage's forecast; of lists, whose documents share their tokens, none pair by pair."""
    lists, pairwise = stage.get("listwise"), f" ({stage['forecast_tokens_pairwise']} pair by pair)"
    figures = {
        **stage,
        "fetch": scaled(stage.get("forecast_fetch_bytes", 0), "B"),
        "work": scaled(stage["forecast_tflop"] * 1e12, "FLOP") if stage["forecast_tflop"] else "under 1 GFLOP",
        "read_amplification": stage.get("forecast_read_amplification") or 1,
        "device_time": duration((stage["forecast_device_hours"] or 0.0) * 3600),
        "of": "lists" if lists else "queries",
        "pair_by_pair": "" if lists else pairwise,
        "lists": "{scored} lists, {reused} more reused, ".format(**lists) if lists and "scored" in lists else "",
        "fetch_time": duration((stage.get("forecast_fetch_hours") or 0.0) * 3600),
    }
    for line in _AT_MOST_LINES if stage.get("at_most") else _PLAN_LINES:
        logger.info(line, figures)
    if "at_least" in stage:
        logger.info(_AT_LEAST_LINE, stage["at_least"])
    if stage["forecast_device_hours"] is not None:
        logger.info(_HOURS_LINE, figures)
