"""The evaluations of the last published runs by the same judgements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lakerank.evaluation.evaluation import Evaluation
from lakerank.lake.publication import last_published
from lakerank.lake.runs import RunPaths, read_json
from lakerank.lake.storage import Storage, join

#: Publications looked at.
MOST = 20


def trend(storage: Storage, evaluation: Evaluation) -> list[Mapping[str, Any]]:
    """This evaluation and those of the last publications by the same judgements, as JSON has them, newest first."""
    output, evaluations = evaluation.inputs.paths.output, [evaluation.as_dict()]
    for run_id in last_published(storage, output, MOST):
        other = read_json(storage, join(RunPaths(output, run_id).folder, "evaluation.json")) or {}
        judgements = other.get("judgements", {}).get("fingerprint")  # an earlier version wrote none
        if run_id != evaluation.run_id and judgements == evaluation.queries.judgements:
            evaluations.append(other)
    return sorted(evaluations, key=lambda other: other["published_at"] or "~", reverse=True)
