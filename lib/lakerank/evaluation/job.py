"""Evaluate a run and write its figures and its report into the run's folder."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lakerank.evaluation.evaluation import Evaluation, ReadBlocks, evaluate
from lakerank.evaluation.inputs import Inputs
from lakerank.evaluation.metrics.bootstrap import Difference
from lakerank.evaluation.metrics.measures import PRIMARY, SECONDARY
from lakerank.evaluation.report.examples import GAINED, LOST, Example, choose, fetch_examples
from lakerank.evaluation.report.html import ShownQueries, plots_of, render
from lakerank.evaluation.report.plots import Plot
from lakerank.evaluation.report.tables import csv_tables, query_tables
from lakerank.lake.runs import RunPaths
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import parquet_bytes

#: Queries shown in the report as examples.
EXAMPLES = 12

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A written evaluation: its figures, its examples, and the addresses of its files."""

    evaluation: Evaluation
    examples: tuple[Example, ...]
    report: str
    figures: str
    seconds: float

    def summary(self) -> dict[str, Any]:
        """The job's last line of standard output."""
        evaluation = self.evaluation
        overall = evaluation.overall
        return {
            "run_id": evaluation.run_id,
            "queries": overall.queries,
            "chance": _rounded(overall.random),
            "first_stage": _rounded(overall.first_stage) if overall.first_stage else None,
            "reranked": _rounded(overall.reranked),
            "gain": _rounded_gain(overall.gain[PRIMARY]) if overall.gain else None,
            "against": self._baseline(),
            "benchmarks": {headline.name: round(headline.reranked, 4) for headline in evaluation.benchmarks},
            "modality_gap": {f"{gap.stage}, {gap.query} queries": gap.trust.value for gap in evaluation.gaps},
            "report": self.report,
            "evaluation": self.figures,
            "seconds": round(self.seconds, 3),
        }

    def _baseline(self) -> dict[str, Any] | None:
        overall = self.evaluation.overall
        if overall.baseline is None:
            return None
        gain = _rounded_gain(overall.baseline_gain[PRIMARY])
        return {"run_id": self.evaluation.baseline, **_rounded(overall.baseline), "gain": gain}


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(figures[name], 4) for name in (PRIMARY, SECONDARY)}


def _rounded_gain(gain: Difference) -> dict[str, float | None]:
    low, high, p = (None if value is None else float(f"{value:.4g}") for value in (gain.low, gain.high, gain.p))
    return {"mean": round(gain.mean, 4), "low": low, "high": high, "p": p}


def folder(paths: RunPaths) -> str:
    """The folder of an evaluation's tables and plots."""
    return join(paths.folder, "evaluation")


def evaluate_run(storage: Storage, inputs: Inputs, read_blocks: ReadBlocks | None = None) -> Evaluated:
    """Evaluate a run and write `report.html`, `evaluation.json` and `evaluation/` into its folder, over earlier ones.

    Raises:
        StorageError: a file cannot be read, or the folder cannot be written.
        SchemaError: no query of the lake has a judgement.
    """
    started = time.monotonic()
    evaluation = evaluate(storage, inputs, read_blocks)
    shown = _shown(storage, evaluation)
    plots = plots_of(evaluation)
    _write_queries(storage, evaluation)
    _write_tables(storage, evaluation, plots.all())
    report, figures = inputs.paths.report, join(inputs.paths.folder, "evaluation.json")
    encoded = json.dumps(evaluation.as_dict(), ensure_ascii=False, allow_nan=False, indent=1)
    storage.replace(figures, encoded.encode("utf-8", "backslashreplace"))
    # The report comes last: where it exists, so does the rest.
    storage.replace(report, render(evaluation, shown, plots).encode("utf-8", "replace"))
    seconds = time.monotonic() - started
    _log.info("evaluated %d queries in %.1f s", evaluation.overall.queries, seconds)
    return Evaluated(evaluation, tuple(shown.examples), report, figures, seconds)


def _shown(storage: Storage, evaluation: Evaluation) -> ShownQueries:
    pool = evaluation.examples
    lists = (choose(pool, EXAMPLES), pool.get((GAINED, ""), []), pool.get((LOST, ""), []))
    examples = fetch_examples(storage, evaluation.inputs.tables, [query for queries in lists for query in queries])
    ends = [len(lists[0]), len(lists[0]) + len(lists[1])]
    return ShownQueries(examples[: ends[0]], examples[ends[0] : ends[1]], examples[ends[1] :])


def _write_queries(storage: Storage, evaluation: Evaluation) -> None:
    """The figures by query as numbered Parquet files, without those of an earlier evaluation."""
    home = join(folder(evaluation.inputs.paths), "queries")
    names = set()
    for number, table in enumerate(query_tables(evaluation.queries)):
        names.add(f"part-{number:05d}.parquet")
        storage.replace(join(home, f"part-{number:05d}.parquet"), parquet_bytes(table, table.num_rows))
    for name in storage.list_names(home):
        if name not in names:
            storage.delete(join(home, name))


def _write_tables(storage: Storage, evaluation: Evaluation, plots: list[Plot]) -> None:
    """CSV and PNG files, without those of an earlier evaluation that this one lacks."""
    home = folder(evaluation.inputs.paths)
    files = {name: text.encode("utf-8", "replace") for name, text in csv_tables(evaluation).items()}
    files |= {f"{plot.name}.png": plot.png() for plot in plots}
    for name, data in files.items():
        storage.replace(join(home, name), data)
    for name in storage.list_names(home):
        if name.endswith((".csv", ".png")) and name not in files:
            storage.delete(join(home, name))
