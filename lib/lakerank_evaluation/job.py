"""Evaluate a run and write its report and its figures, as JSON, CSV and Parquet, into the run's folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from lakerank.lake.checksums import json_bytes
from lakerank.lake.publication import last_published
from lakerank.lake.runs import RunPaths, read_json
from lakerank.lake.storage import Storage, join
from lakerank.runner import Runner
from lakerank_evaluation.blocks import read_blocks
from lakerank_evaluation.evaluation import Evaluation, evaluate
from lakerank_evaluation.examples import Example, choose, extremes, fetch_examples, fetch_rejects, query_texts
from lakerank_evaluation.inputs import Inputs
from lakerank_evaluation.metrics.bootstrap import Difference
from lakerank_evaluation.metrics.measures import PRIMARY, SECONDARY
from lakerank_evaluation.reasons import shown_reasons
from lakerank_evaluation.repetition import repetition, shown_clusters
from lakerank_evaluation.report.html import render
from lakerank_evaluation.report.plots import plots_of
from lakerank_evaluation.report.tables import csv_files, query_files, query_table
from lakerank_evaluation.report.verdict import verdict

#: Queries shown in the report as examples.
EXAMPLES = 12

#: Publications looked at for evaluations by the same judgements.
_TREND = 20

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
        baseline = None
        if overall.baseline is not None:
            gain = _rounded_gain(overall.baseline_gain[PRIMARY])
            baseline = {"run_id": evaluation.baseline, **_rounded(overall.baseline), "gain": gain}
        return {
            "run_id": evaluation.run_id,
            "models": list(evaluation.inputs.models),
            "verdict": verdict(evaluation).outcome.value,
            "queries": overall.queries,
            "chance": _rounded(overall.random),
            "ceiling": _rounded(overall.ceiling) if overall.ceiling else None,
            "first_stage": _rounded(overall.first_stage) if overall.first_stage else None,
            "reranked": _rounded(overall.reranked),
            "gain": _rounded_gain(overall.gain[PRIMARY]) if overall.gain else None,
            "against": baseline,
            "benchmarks": {headline.name: round(headline.reranked, 4) for headline in evaluation.benchmarks},
            "modality_gap": {f"{gap.stage}, {gap.query} queries": gap.trust.value for gap in evaluation.gaps},
            "position_bias": evaluation.inputs.position_bias,
            "report": self.report,
            "evaluation": self.figures,
            "seconds": round(self.seconds, 3),
        }


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(figures[name], 4) for name in (PRIMARY, SECONDARY)}


def _rounded_gain(gain: Difference) -> dict[str, float | None]:
    low, high, p = (None if value is None else float(f"{value:.4g}") for value in (gain.low, gain.high, gain.p))
    return {"mean": round(gain.mean, 4), "low": low, "high": high, "p": p}


def folder(paths: RunPaths, baseline: RunPaths | None = None, name: str = "evaluation") -> str:
    """The folder of an evaluation's tables and plots; a comparison with a baseline run has one of its own."""
    return join(paths.folder, f"{name}-against-{baseline.run_id}" if baseline else name)


def evaluate_run(runner: Runner, storage: Storage, inputs: Inputs) -> Evaluated:
    """Evaluate a run and write `report.html`, `evaluation.json` and `evaluation/` into its folder, over earlier ones.

    A comparison with a baseline run B has names of its own, `report-against-B.html` and so on; it is `evaluation.json`
    too until the run is evaluated by itself.

    Raises:
        StorageError: a file cannot be read, or the folder cannot be written.
        SchemaError: no query of the lake has a judgement.
    """
    started = time.monotonic()
    evaluation = evaluate(storage, inputs, read_blocks(runner, storage, inputs))
    shown, repeated = _shown(storage, evaluation), repetition(storage, inputs)
    shown |= {"repetition": repeated, "clusters": shown_clusters(storage, inputs, repeated)}
    shown["reasons"] = shown_reasons(storage, inputs)
    plots = plots_of(evaluation)
    home, result = folder(inputs.paths, inputs.baseline), verdict(evaluation)
    _replace_all(storage, join(home, "queries"), query_files(evaluation.queries))
    images = ((f"{plot.words.name}.png", plot.png) for plot in chain.from_iterable(plots.values()))
    _replace_all(storage, home, chain(csv_files(evaluation, shown["queries"]), images))
    report, figures = f"{folder(inputs.paths, inputs.baseline, 'report')}.html", f"{home}.json"
    more = {"verdict": result.outcome.value, "repetition": repeated.as_dict() if repeated else None}
    content, own = json_bytes(evaluation.as_dict() | more), f"{folder(inputs.paths)}.json"
    storage.replace(figures, content)
    if inputs.baseline and (read_json(storage, own) or {"against": True})["against"]:
        storage.replace(own, content)  # a run that is only evaluated against others has the last of these
    # The report comes last: where it exists, so does the rest.
    storage.replace(report, render(evaluation, shown, plots).encode("utf-8", "replace"))
    seconds = time.monotonic() - started
    for sentence in evaluation.unmatched.sentences():
        _log.warning("run %s: %s", evaluation.run_id, sentence)
    if result.is_bad:
        _log.warning("run %s: %s", evaluation.run_id, result.outcome.sentence)
    _log.info("evaluated %d queries in %.1f s", evaluation.overall.queries, seconds)
    return Evaluated(evaluation, tuple(shown["examples"]), report, figures, seconds)


def _shown(storage: Storage, evaluation: Evaluation) -> dict[str, Any]:
    """What the page shows beside the figures, contents of the lake read by reference."""
    queries, tables = evaluation.queries, evaluation.inputs.tables
    rows = dict(zip(("examples", "gained", "lost"), (choose(queries, EXAMPLES), *extremes(queries)), strict=True))
    every = iter(fetch_examples(storage, evaluation, [*chain.from_iterable(rows.values())]))
    return {
        **{name: list(islice(every, len(part))) for name, part in rows.items()},
        "queries": query_table(evaluation, lambda ids: query_texts(storage, tables.queries, ids)),
        "rejected": fetch_rejects(storage, evaluation.inputs),
        "trend": trend(storage, evaluation),
    }


def trend(storage: Storage, evaluation: Evaluation) -> list[Mapping[str, Any]]:
    """This evaluation and those of the last publications by the same judgements, as JSON has them, newest first."""
    output, evaluations = evaluation.inputs.paths.output, [evaluation.as_dict()]
    for run_id in last_published(storage, output, _TREND):
        other = read_json(storage, f"{folder(RunPaths(output, run_id))}.json") or {}
        judgements = other.get("judgements", {}).get("fingerprint")  # an earlier version wrote none
        if run_id != evaluation.run_id and judgements == evaluation.queries.judgements:
            evaluations.append(other)
    return sorted(evaluations, key=lambda other: other["published_at"] or "~", reverse=True)


def _replace_all(storage: Storage, home: str, files: Iterable[tuple[str, bytes]]) -> None:
    """Write (name, content) of files into a folder, and delete those of their kind that an earlier evaluation left."""
    names = set()
    for name, data in files:
        storage.replace(join(home, name), data)
        names.add(name)
    for name in storage.list_names(home):
        if name.endswith((".csv", ".png", ".parquet")) and name not in names:
            storage.delete(join(home, name))
