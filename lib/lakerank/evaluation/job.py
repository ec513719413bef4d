"""Evaluate a run and leave its figures and its report beside it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lakerank.evaluation.evaluation import Evaluation, evaluate
from lakerank.evaluation.examples import Example, build, choose, extremes
from lakerank.evaluation.lists import PRIMARY, SECONDARY
from lakerank.evaluation.report import ShownQueries, render
from lakerank.evaluation.run_tables import LakeTables
from lakerank.lake.runs import RunPaths
from lakerank.lake.storage import Storage, join

#: Queries shown in the report: examples, and of gains and of losses each. Documents shown of each list.
EXAMPLES, EXTREMES, DEPTH = 12, 6, 5

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation that has been written: its figures, its examples, and where its files are."""

    evaluation: Evaluation
    examples: tuple[Example, ...]
    report: str
    figures: str
    seconds: float

    def summary(self) -> dict[str, Any]:
        """The job's last line of standard output."""
        overall = self.evaluation.overall
        columns: dict[str, Mapping[str, float] | None] = {
            "chance": overall.chance,
            "first_stage": overall.first_stage,
            "reranked": overall.reranked,
        }
        return {
            "run_id": self.evaluation.run_id,
            "queries": overall.queries,
            **{name: _rounded(figures) if figures else None for name, figures in columns.items()},
            "report": self.report,
            "evaluation": self.figures,
            "seconds": round(self.seconds, 3),
        }


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(figures[name], 4) for name in (PRIMARY, SECONDARY)}


def evaluate_run(storage: Storage, tables: LakeTables, paths: RunPaths) -> Evaluated:
    """Judge a run and write `report.html` and `evaluation.json` into its folder. Writing again replaces them.

    Raises:
        StorageError: a table or the run is not there, or the folder cannot be written.
        SchemaError: a table lacks a column, or no query of the lake has a judgement.
    """
    started = time.monotonic()
    evaluation = evaluate(storage, tables, paths)
    chosen = choose(evaluation.results, evaluation.queries, EXAMPLES)
    gained, lost = extremes(evaluation.results, EXTREMES)
    examples = build(storage, tables, evaluation, [*chosen, *gained, *lost], DEPTH)
    shown = ShownQueries(
        examples[: len(chosen)],
        examples[len(chosen) : len(chosen) + len(gained)],
        examples[len(chosen) + len(gained) :],
    )
    report, figures = paths.report, join(paths.folder, "evaluation.json")
    storage.replace(report, render(evaluation, shown).encode())
    encoded = json.dumps(evaluation.as_dict(), ensure_ascii=False, allow_nan=False, indent=1)
    storage.replace(figures, encoded.encode())
    seconds = time.monotonic() - started
    _log.info("evaluated %d queries in %.1f s", len(evaluation.results), seconds)
    return Evaluated(evaluation, tuple(shown.examples), report, figures, seconds)
