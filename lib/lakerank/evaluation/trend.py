"""The evaluations of the last published runs by the same judgements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lakerank.evaluation.evaluation import Evaluation
from lakerank.lake.publication import last_published
from lakerank.lake.runs import RunPaths, read_json
from lakerank.lake.storage import Storage, join

#: Publications looked at.
MOST = 20


@dataclass(frozen=True, slots=True)
class TrendPoint:
    """A run and its figures over the same judged queries."""

    run_id: str
    published_at: str
    models: tuple[str, ...]
    random: Mapping[str, float]
    first_stage: Mapping[str, float] | None
    reranked: Mapping[str, float]

    @classmethod
    def of(cls, evaluation: Mapping[str, Any]) -> TrendPoint:
        """Of an `evaluation.json`."""
        overall = evaluation["overall"]
        about = evaluation["run_id"], evaluation["published_at"] or "", tuple(evaluation["models"])
        return cls(*about, overall["chance"], overall["first_stage"], overall["reranked"])


def trend(storage: Storage, evaluation: Evaluation) -> list[TrendPoint]:
    """The run and those of the last publications that were evaluated by the same judgements, newest first."""
    own = evaluation.as_dict()
    evaluations = [own]
    for run_id in last_published(storage, evaluation.inputs.paths.output, MOST):
        folder = RunPaths(evaluation.inputs.paths.output, run_id).folder
        other = read_json(storage, join(folder, "evaluation.json")) or {}
        if run_id != evaluation.run_id and _judged_alike(other, own):
            evaluations.append(other)
    evaluations.sort(key=lambda other: other["published_at"] or "~", reverse=True)  # one not published is the newest
    return [TrendPoint.of(other) for other in evaluations]


def _judged_alike(other: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Whether the same queries were judged, by the same judgements; False for an evaluation of an earlier version."""
    return bool(other.get("judgements", {}).get("fingerprint") == own["judgements"]["fingerprint"])
