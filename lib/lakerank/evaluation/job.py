"""Evaluate a run and leave its figures and its report beside it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lakerank.evaluation.evaluation import Evaluation, Judge, evaluate
from lakerank.evaluation.inputs import Inputs
from lakerank.evaluation.metrics.measures import PRIMARY, SECONDARY
from lakerank.evaluation.metrics.sums import Difference
from lakerank.evaluation.report.examples import Example, build
from lakerank.evaluation.report.html import ShownQueries, plots_of, render
from lakerank.evaluation.report.plots import Plot
from lakerank.evaluation.report.query_figures import folder
from lakerank.evaluation.report.shortlist import GAINED, LOST, choose
from lakerank.evaluation.report.tables import csv_tables
from lakerank.lake.storage import Storage, join

#: Queries shown in the report as examples.
EXAMPLES = 12

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
        evaluation = self.evaluation
        overall = evaluation.overall
        columns: dict[str, Mapping[str, float] | None] = {
            "chance": overall.chance,
            "first_stage": overall.first_stage,
            "reranked": overall.reranked,
        }
        found = {name: _rounded(figures) if figures else None for name, figures in columns.items()}
        return {
            "run_id": evaluation.run_id,
            "queries": overall.queries,
            **found,
            "gain": _told(overall.gain[PRIMARY]) if overall.gain else None,
            "against": self._against(),
            "benchmarks": {one.name: round(one.reranked, 4) for one in evaluation.benchmarks},
            "modality_gap": {f"{one.stage}, {one.query} queries": one.trust.value for one in evaluation.gaps},
            "report": self.report,
            "evaluation": self.figures,
            "seconds": round(self.seconds, 3),
        }

    def _against(self) -> dict[str, Any] | None:
        overall = self.evaluation.overall
        if overall.against is None:
            return None
        gain = _told(overall.against_gain[PRIMARY])
        return {"run_id": self.evaluation.against, **_rounded(overall.against), "gain": gain}


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(figures[name], 4) for name in (PRIMARY, SECONDARY)}


def _told(gain: Difference) -> dict[str, float | None]:
    """A difference of the primary measure, in few digits."""
    low, high, p = (None if value is None else float(f"{value:.4g}") for value in (gain.low, gain.high, gain.p))
    return {"mean": round(gain.mean, 4), "low": low, "high": high, "p": p}


def evaluate_run(storage: Storage, inputs: Inputs, judge: Judge | None = None) -> Evaluated:
    """Judge a run and write `report.html`, `evaluation.json` and `evaluation/` into its folder. Again replaces them.

    Raises:
        StorageError: a file cannot be read, or the folder cannot be written.
        SchemaError: no query of the lake has a judgement.
    """
    started = time.monotonic()
    evaluation = evaluate(storage, inputs, judge)
    shown = _shown(storage, evaluation)
    plots = plots_of(evaluation)
    _write_tables(storage, evaluation, plots.every())
    report, figures = inputs.paths.report, join(inputs.paths.folder, "evaluation.json")
    encoded = json.dumps(evaluation.as_dict(), ensure_ascii=False, allow_nan=False, indent=1)
    storage.replace(figures, encoded.encode("utf-8", "backslashreplace"))
    storage.replace(report, render(evaluation, shown, plots).encode("utf-8", "replace"))  # last: it stands for the rest
    seconds = time.monotonic() - started
    _log.info("evaluated %d queries in %.1f s", evaluation.overall.queries, seconds)
    return Evaluated(evaluation, tuple(shown.examples), report, figures, seconds)


def _shown(storage: Storage, evaluation: Evaluation) -> ShownQueries:
    shortlist = evaluation.shortlist
    lists = (choose(shortlist, EXAMPLES), shortlist.get((GAINED, ""), []), shortlist.get((LOST, ""), []))
    examples = build(storage, evaluation.inputs.tables, [one for ones in lists for one in ones])
    ends = [len(lists[0]), len(lists[0]) + len(lists[1])]
    return ShownQueries(examples[: ends[0]], examples[ends[0] : ends[1]], examples[ends[1] :])


def _write_tables(storage: Storage, evaluation: Evaluation, plots: list[Plot]) -> None:
    """CSV and PNG files, without those that an earlier evaluation left and this one has not."""
    home = folder(evaluation.inputs.paths)
    files = {name: text.encode("utf-8", "replace") for name, text in csv_tables(evaluation).items()}
    files |= {f"{plot.name}.png": plot.png() for plot in plots}
    for name, data in files.items():
        storage.replace(join(home, name), data)
    for name in storage.list_names(home):
        if name.endswith((".csv", ".png")) and name not in files:
            storage.delete(join(home, name))
