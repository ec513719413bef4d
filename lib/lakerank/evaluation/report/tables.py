"""The numbers of an evaluation as CSV, one file a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from lakerank.evaluation.analysis.slices import Slice
from lakerank.evaluation.evaluation import Evaluation
from lakerank.evaluation.metrics.measures import NAMES
from lakerank.evaluation.metrics.sums import Difference


def csv_tables(evaluation: Evaluation) -> dict[str, str]:
    """File names and their content."""
    return {
        "slices.csv": _csv(_SLICE_COLUMNS, _slice_rows((evaluation.overall, *evaluation.slices))),
        "benchmarks.csv": _csv(_BENCHMARK_COLUMNS, _benchmark_rows(evaluation)),
        "modality_gap.csv": _csv(_GAP_COLUMNS, _gap_rows(evaluation)),
        "calibration.csv": _csv(
            ("relevance", "pairs", "judged_relevant"),
            [(one.relevance, one.pairs, one.relevant) for one in evaluation.calibration],
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
    for one in slices:
        for name in NAMES:
            gain, against = one.gain.get(name), one.against_gain.get(name)
            yield (
                one.dimension, one.value, one.queries, name, one.chance.get(name),
                one.first_stage[name] if one.first_stage else None, one.reranked[name], *one.intervals[name],
                *_difference(gain), one.against[name] if one.against else None, *_difference(against),
            )  # fmt: skip


def _difference(one: Difference | None) -> tuple[float | None, ...]:
    return (None,) * 4 if one is None else (one.mean, one.low, one.high, one.p)


def _benchmark_rows(evaluation: Evaluation) -> Iterable[Sequence[Any]]:
    for one in evaluation.benchmarks:
        about = one.benchmark
        yield (
            about.title, "all", about.measure_name, one.queries, one.first_stage, one.reranked, one.low, one.high,
            one.against, about.published,
        )  # fmt: skip
        for name, value in one.details.items():
            yield (about.title, "all", f"{name} score", one.queries, None, value, None, None, None, None)
        for dataset in one.datasets:
            yield (
                about.title, dataset.name, about.measure_name, dataset.queries, dataset.first_stage, dataset.reranked,
                None, None, dataset.against, None,
            )  # fmt: skip


def _gap_rows(evaluation: Evaluation) -> Iterable[Sequence[Any]]:
    for gap in evaluation.gaps:
        for name, one in (("relevant", gap.relevant), ("other", gap.others)):
            if one is not None:
                yield (
                    gap.stage, gap.query, name, one.texts, one.images, one.overlap, one.difference, one.auc, one.low,
                    one.high, gap.trust.value,
                )  # fmt: skip


def _csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_safe(cell) for cell in row] for row in rows)
    return buffer.getvalue()


def _safe(cell: Any) -> Any:
    """A text that a spreadsheet would take for a formula is shown as it is."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell
