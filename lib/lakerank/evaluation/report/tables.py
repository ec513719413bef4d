"""The figures of an evaluation as files: CSV tables, and Parquet by query."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from lakerank.evaluation.analysis.slices import Slice
from lakerank.evaluation.evaluation import Evaluation, JudgedQueries
from lakerank.evaluation.metrics.bootstrap import Difference
from lakerank.evaluation.metrics.measures import NAMES

#: Queries of one Parquet file.
_FILE_QUERIES = 100_000


def query_tables(queries: JudgedQueries) -> Iterator[pa.Table]:
    """The figures by query, so many queries a table: query_id, and each measure of each list as `list:measure`."""
    lists = {
        "first_stage": queries.figures.first_stage,
        "reranked": queries.figures.reranked,
        "against": queries.figures.baseline,
    }
    columns = {
        f"{name}:{measure}": figures[:, column]
        for name, figures in lists.items()
        if figures is not None
        for column, measure in enumerate(NAMES)
    }
    for start in range(0, len(queries.query_ids), _FILE_QUERIES):
        rows = slice(start, start + _FILE_QUERIES)
        arrays = {name: pa.array(values[rows]) for name, values in columns.items()}
        yield pa.table({"query_id": queries.query_ids[rows], **arrays})


def csv_tables(evaluation: Evaluation) -> dict[str, str]:
    """File names and their content."""
    return {
        "slices.csv": _csv(_SLICE_COLUMNS, _slice_rows((evaluation.overall, *evaluation.slices))),
        "benchmarks.csv": _csv(_BENCHMARK_COLUMNS, _benchmark_rows(evaluation)),
        "modality_gap.csv": _csv(_GAP_COLUMNS, _gap_rows(evaluation)),
        "calibration.csv": _csv(
            ("relevance", "pairs", "judged_relevant"),
            [(part.relevance, part.pairs, part.relevant) for part in evaluation.calibration],
        ),
        "labels.csv": _csv(
            ("label", "grade", "pairs"),
            [
                (label, grade, pairs)
                for label, row in enumerate(evaluation.agreement.table)
                for grade, pairs in enumerate(row)
            ],
        ),
    }


_SLICE_COLUMNS = (
    "dimension", "value", "queries", "measure", "chance", "first_stage", "reranked", "reranked_low", "reranked_high",
    "gain", "gain_low", "gain_high", "gain_p", "against", "against_gain", "against_low", "against_high", "against_p",
)  # fmt: skip
_BENCHMARK_COLUMNS = (
    "benchmark", "dataset", "measure", "queries", "first_stage", "reranked", "low", "high", "against", "published",
)  # fmt: skip
_GAP_COLUMNS = (
    "stage", "query", "documents", "texts", "images", "overlap", "difference", "auc", "auc_low", "auc_high", "trust",
)  # fmt: skip


def _slice_rows(slices: Iterable[Slice]) -> Iterable[Sequence[Any]]:
    for part in slices:
        for name in NAMES:
            first, baseline = (figures[name] if figures else None for figures in (part.first_stage, part.baseline))
            yield (
                part.dimension, part.value, part.queries, name, part.random.get(name), first, part.reranked[name],
                *part.intervals[name], *_difference(part.gain.get(name)), baseline,
                *_difference(part.baseline_gain.get(name)),
            )  # fmt: skip


def _difference(difference: Difference | None) -> tuple[float | None, ...]:
    return (None,) * 4 if difference is None else (difference.mean, difference.low, difference.high, difference.p)


def _benchmark_rows(evaluation: Evaluation) -> Iterable[Sequence[Any]]:
    for headline in evaluation.benchmarks:
        about = headline.benchmark
        yield (
            about.title, "all", about.measure_name, headline.queries, headline.first_stage, headline.reranked,
            headline.low, headline.high, headline.baseline, about.published,
        )  # fmt: skip
        for name, value in headline.details.items():
            yield (about.title, "all", f"{name} score", headline.queries, None, value, None, None, None, None)
        for dataset in headline.datasets:
            yield (
                about.title, dataset.name, about.measure_name, dataset.queries, dataset.first_stage, dataset.reranked,
                None, None, dataset.baseline, None,
            )  # fmt: skip


def _gap_rows(evaluation: Evaluation) -> Iterable[Sequence[Any]]:
    for gap in evaluation.gaps:
        for name, scores in (("relevant", gap.relevant), ("other", gap.others)):
            if scores is not None:
                yield (
                    gap.stage, gap.query, name, scores.texts, scores.images, scores.overlap, scores.difference,
                    scores.auc, scores.low, scores.high, gap.trust.value,
                )  # fmt: skip


def _csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_safe(cell) for cell in row] for row in rows)
    return buffer.getvalue()


def _safe(cell: Any) -> Any:
    """A text that a spreadsheet would evaluate as a formula gets an apostrophe before it."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell
