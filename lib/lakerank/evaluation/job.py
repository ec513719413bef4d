"""Evaluate a run and write its report and its figures, as JSON, CSV and Parquet, into the run's folder."""

from __future__ import annotations

import csv
import io
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
import pyarrow as pa

from lakerank.evaluation.evaluation import Evaluation, JudgedQueries, ReadBlocks, evaluate
from lakerank.evaluation.examples import GAINED, LOST, Example, choose, fetch_examples, fetch_rejects
from lakerank.evaluation.inputs import Inputs
from lakerank.evaluation.metrics.bootstrap import Difference
from lakerank.evaluation.metrics.measures import NAMES, PRIMARY, SECONDARY
from lakerank.evaluation.report.html import render
from lakerank.evaluation.report.plots import plots_of
from lakerank.evaluation.report.queries import query_table
from lakerank.evaluation.report.verdict import verdict
from lakerank.lake.publication import last_published
from lakerank.lake.ranked import query_texts
from lakerank.lake.runs import RunPaths, read_json
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import parquet_bytes

#: Queries shown in the report as examples.
EXAMPLES = 12

#: Publications looked at for evaluations by the same judgements.
_TREND = 20

#: Queries of one Parquet file.
_FILE_QUERIES = 100_000

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


def evaluate_run(storage: Storage, inputs: Inputs, read_blocks: ReadBlocks | None = None) -> Evaluated:
    """Evaluate a run and write `report.html`, `evaluation.json` and `evaluation/` into its folder, over earlier ones.

    A comparison with a baseline run B has names of its own: `report-against-B.html`, …

    Raises:
        StorageError: a file cannot be read, or the folder cannot be written.
        SchemaError: no query of the lake has a judgement.
    """
    started = time.monotonic()
    evaluation = evaluate(storage, inputs, read_blocks)
    shown = _shown(storage, evaluation)
    plots = plots_of(evaluation)
    home, result = folder(inputs.paths, inputs.baseline), verdict(evaluation)
    _replace_all(storage, join(home, "queries"), _query_files(evaluation.queries))
    images = ((f"{plot.words.name}.png", plot.png) for plot in chain.from_iterable(plots.values()))
    _replace_all(storage, home, chain(_csv_files(evaluation, shown["queries"]), images))
    report, figures = f"{folder(inputs.paths, inputs.baseline, 'report')}.html", f"{home}.json"
    contents = {**evaluation.as_dict(), "verdict": result.outcome.value}
    encoded = json.dumps(contents, ensure_ascii=False, allow_nan=False, indent=1)
    storage.replace(figures, encoded.encode("utf-8", "backslashreplace"))
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
    pool, tables = evaluation.examples, evaluation.inputs.tables
    parts = {"examples": choose(pool, EXAMPLES)} | {kind: pool.get((kind, ""), []) for kind in (GAINED, LOST)}
    every = iter(fetch_examples(storage, tables, list(chain.from_iterable(parts.values()))))
    return {
        **{name: list(islice(every, len(part))) for name, part in parts.items()},
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


def _query_files(queries: JudgedQueries) -> Iterator[tuple[str, bytes]]:
    """The figures by query, so many queries a file: query_id, and each measure of each list as `list:measure`."""
    lists = (
        ("first_stage", queries.figures.first_stage),
        ("reranked", queries.figures.reranked),
        ("against", queries.figures.baseline),
    )
    columns = {
        f"{name}:{measure}": figures[:, column]
        for name, figures in lists
        if figures is not None
        for column, measure in enumerate(NAMES)
    }
    for number, start in enumerate(range(0, len(queries.query_ids), _FILE_QUERIES)):
        rows = slice(start, start + _FILE_QUERIES)
        arrays = {name: pa.array(values[rows]) for name, values in columns.items()}
        table = pa.table({"query_id": queries.query_ids[rows], **arrays})
        yield f"part-{number:05d}.parquet", parquet_bytes(table, table.num_rows)


def _csv_files(evaluation: Evaluation, queries: pa.Table) -> Iterator[tuple[str, bytes]]:
    bins, agreed = evaluation.calibration, evaluation.agreement.table
    tables = {
        "queries": (" ".join(queries.column_names), (row.values() for row in queries.to_pylist())),
        "slices": (_SLICE_COLUMNS, _slice_rows(evaluation)),
        "benchmarks": (_BENCHMARK_COLUMNS, _benchmark_rows(evaluation)),
        "modality_gap": (_GAP_COLUMNS, _gap_rows(evaluation)),
        "calibration": ("relevance pairs judged_relevant", map(astuple, bins)),
        "labels": ("label grade pairs", ((*key, pairs) for key, pairs in np.ndenumerate(agreed))),
    }
    for name, (columns, rows) in tables.items():
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(columns.split())
        writer.writerows(map(_safe, row) for row in rows)
        yield f"{name}.csv", buffer.getvalue().encode("utf-8", "replace")


_SLICE_COLUMNS = (
    "dimension value queries measure chance first_stage first_stage_low first_stage_high reranked reranked_low "
    "reranked_high gain gain_low gain_high gain_p against against_gain against_low against_high against_p ceiling"
)
_BENCHMARK_COLUMNS = "benchmark dataset measure queries first_stage reranked low high against published"
_GAP_COLUMNS = "stage query documents texts images overlap difference auc auc_low auc_high trust"


def _slice_rows(evaluation: Evaluation) -> Iterator[Sequence[Any]]:
    for part in (evaluation.overall, *evaluation.slices):
        for name in NAMES:
            first, baseline = (figures[name] if figures else None for figures in (part.first_stage, part.baseline))
            gain, baseline_gain = (
                astuple(gains[name]) if gains else (None,) * 4 for gains in (part.gain, part.baseline_gain)
            )
            yield (
                part.dimension, part.value, part.queries, name, part.random.get(name), first,
                *part.first_intervals.get(name, (None, None)), part.reranked[name], *part.intervals[name], *gain,
                baseline, *baseline_gain, (part.ceiling or {}).get(name),
            )  # fmt: skip


def _benchmark_rows(evaluation: Evaluation) -> Iterator[Sequence[Any]]:
    for headline in evaluation.benchmarks:
        about = headline.benchmark
        yield (
            about.title, "all", about.measure_name, headline.queries, headline.first_stage, headline.reranked,
            headline.low, headline.high, headline.baseline, about.published,
        )  # fmt: skip
        for name, value in headline.details.items():
            yield (about.title, "all", f"{name} score", headline.queries, None, value, None, None, None, None)
        for name, queries, first, reranked, baseline in map(astuple, headline.datasets):
            yield (about.title, name, about.measure_name, queries, first, reranked, None, None, baseline, None)


def _gap_rows(evaluation: Evaluation) -> Iterator[Sequence[Any]]:
    for gap in evaluation.gaps:
        for name, scores in (("relevant", gap.relevant), ("other", gap.others)):
            if scores is not None:
                yield (gap.stage, gap.query, name, *astuple(scores), gap.trust.value)


def _safe(cell: Any) -> Any:
    """A text that a spreadsheet would evaluate as a formula gets an apostrophe before it."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell
