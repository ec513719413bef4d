"""The figures as tables: the page's table of queries, and the files beside the page, as CSV and as Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
import pyarrow as pa

from lakerank.lake.tables import parquet_bytes
from lakerank_evaluation.analysis.averages import DIMENSIONS
from lakerank_evaluation.evaluation import PUBLISHED, STORED_NAMES, Evaluation, JudgedQueries
from lakerank_evaluation.metrics.measures import NAMES, PRIMARY
from lakerank_evaluation.pairs import COUNTS

#: Queries of the page's table, at most.
MOST = 2000

#: Queries of one Parquet file.
_FILE_QUERIES = 100_000


def query_table(
    evaluation: Evaluation, texts: Callable[[Collection[str]], Mapping[str, str]], most: int = MOST
) -> pa.Table:
    """The queries with the largest losses and gains, worst first: `query_id`, `text`, `labels`, COUNTS, `change`, and
    the primary measure of each list there is. `texts` gives those of queries by id.
    """
    queries, gain = evaluation.queries, evaluation.queries.figures.gain
    order = np.argsort(gain, kind="stable")
    chosen = order if len(order) <= most else np.concatenate([order[: most // 2], order[-most // 2 :]])
    query_ids = queries.query_ids.take(chosen).to_pylist()
    text_of = texts(set(query_ids))
    labels = queries.labels.select([name for name in DIMENSIONS if name in queries.labels.column_names])
    column = NAMES.index(PRIMARY)
    lists = {STORED_NAMES.get(name, name): table[chosen, column] for name, table in queries.figures.lists.items()}
    return pa.table({
        "query_id": query_ids,
        "text": [text_of.get(query_id, "") for query_id in query_ids],
        "labels": [" · ".join(filter(None, row.values())) for row in labels.take(chosen).to_pylist()],
        **{name: queries.counts[name].take(chosen) for name in COUNTS},
        "change": gain[chosen],
        **lists,
    })  # fmt: skip


def query_files(queries: JudgedQueries) -> Iterator[tuple[str, bytes]]:
    """The figures by query, so many queries a file: query_id, and each measure of each list as `list:measure`."""
    columns = {
        f"{STORED_NAMES.get(name, name)}:{measure}": table[:, column]
        for name, table in queries.figures.lists.items()
        if name != "ceiling"
        for column, measure in enumerate(NAMES)
    }
    for number, start in enumerate(range(0, len(queries.query_ids), _FILE_QUERIES)):
        rows = slice(start, start + _FILE_QUERIES)
        arrays = {name: pa.array(values[rows]) for name, values in columns.items()}
        table = pa.table({"query_id": queries.query_ids[rows], **arrays})
        yield f"part-{number:05d}.parquet", parquet_bytes(table, table.num_rows)


def csv_files(evaluation: Evaluation, queries: pa.Table) -> Iterator[tuple[str, bytes]]:
    bins, agreed = evaluation.calibration, evaluation.agreement.table
    tables = {
        "queries": (" ".join(queries.column_names), (row.values() for row in queries.to_pylist())),
        "slices": (_SLICE_COLUMNS, _slice_rows(evaluation)),
        **({"benchmarks": PUBLISHED.csv_rows(evaluation.benchmarks)} if PUBLISHED else {}),
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


def _gap_rows(evaluation: Evaluation) -> Iterator[Sequence[Any]]:
    for gap in evaluation.gaps:
        for name, scores in (("relevant", gap.relevant), ("other", gap.others)):
            if scores is not None:
                yield (gap.stage, gap.query, name, *astuple(scores), gap.trust.value)


def _safe(cell: Any) -> Any:
    """A text that a spreadsheet would evaluate as a formula gets an apostrophe before it."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell
