"""The files that an evaluation reads, listed and checked before anything is computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lakerank import schemas
from lakerank.lake.publication import lists_folder
from lakerank.lake.runs import RunPaths, read_manifest
from lakerank.lake.snapshot import TableFile
from lakerank.lake.storage import Storage
from lakerank.lake.tables import Fragment, fragments, read_table_file
from lakerank_evaluation.analysis.averages import DIMENSIONS, MOST_VALUES
from lakerank_evaluation.pairs import InputTable
from lakerank_evaluation.rows import SCHEMAS, attribute_batches

#: The column of queries and documents that is shown instead of an id.
NAME = "name"

#: Columns of the queries table that name a query's benchmark, and its part of the benchmark.
BENCHMARK_LABELS = ("benchmark", "dataset", "subset")

Files = Mapping[InputTable, tuple[Fragment, ...]]


@dataclass(frozen=True, slots=True)
class LakeTables:
    """Addresses of the lake's tables."""

    documents: str
    queries: str
    candidates: str
    qrels: str


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts of the whole run, with and without judgements."""

    candidates: int
    ranked: int
    truncated: int
    rejected: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Inputs:
    """The files to read. `ordered`: the candidates have a first-stage order; `dimensions`: the queries' columns that
    make slices; `labels`: all their extra columns to read; `models`: what the run's rerankers are called.
    `position_bias`: of the run's lister, where somebody asked (see position_bias.py).
    """

    tables: LakeTables
    paths: RunPaths
    baseline: RunPaths | None
    files: Files
    documents: tuple[Fragment, ...]
    ordered: bool
    dimensions: tuple[str, ...]
    labels: tuple[str, ...]
    totals: Totals
    manifest: Mapping[str, Any]
    models: tuple[str, ...] = ()
    position_bias: Mapping[str, Any] | None = None

    @property
    def rows(self) -> int:
        """Rows of all tables but the documents."""
        return sum(fragment.rows for files in self.files.values() for fragment in files)

    def row_groups(self, table: InputTable) -> list[tuple[TableFile, int]]:
        """(file, row group) of a table."""
        return row_groups(self.files[table])


def row_groups(files: Sequence[Fragment]) -> list[tuple[TableFile, int]]:
    """(file, row group) of every row group."""
    return [(fragment.file, group) for fragment in files for group in range(fragment.row_groups)]


def find_inputs(
    storage: Storage,
    tables: LakeTables,
    paths: RunPaths,
    baseline: RunPaths | None = None,
    models: Sequence[str] = (),
) -> Inputs:
    """Find every file and check its schema.

    Raises:
        StorageError: a table or a run does not exist.
        SchemaError: a table lacks a column.
    """
    uris = {
        InputTable.QUERY: tables.queries,
        InputTable.QREL: tables.qrels,
        InputTable.CANDIDATE: tables.candidates,
        InputTable.RANKED: lists_folder(storage, paths),
        **({} if baseline is None else {InputTable.BASELINE: lists_folder(storage, baseline)}),
    }
    files = {table: tuple(fragments(storage, uri, SCHEMAS[table])) for table, uri in uris.items()}
    dimensions = _dimensions(storage, files[InputTable.QUERY])
    manifest = read_manifest(storage, paths.output, paths.run_id) or {}
    return Inputs(
        tables,
        paths,
        baseline,
        files,
        tuple(fragments(storage, tables.documents, schemas.DOCUMENTS)),
        _has_order(storage, files[InputTable.CANDIDATE]),
        dimensions,
        tuple(dict.fromkeys((*dimensions, *BENCHMARK_LABELS, NAME))),
        _totals(storage, paths, files, manifest),
        manifest,
        tuple(models),
    )


def _dimensions(storage: Storage, queries: Sequence[Fragment]) -> tuple[str, ...]:
    """The columns with few enough values to group queries."""
    values: dict[str, set[str]] = {name: set() for name in DIMENSIONS}
    for file, group in row_groups(queries):
        for _, batch in attribute_batches(storage, file, group, schemas.QUERIES, DIMENSIONS):
            for name, distinct in values.items():
                if len(distinct) <= MOST_VALUES:
                    distinct.update(value for value in pc.unique(batch[name]).to_pylist() if value is not None)
    return tuple(name for name, distinct in values.items() if 0 < len(distinct) <= MOST_VALUES)


def _has_order(storage: Storage, candidates: Sequence[Fragment]) -> bool:
    """Whether any candidate has a rank or a score."""
    return any(
        batch[name].null_count < batch.num_rows
        for name in ("first_stage_rank", "first_stage_score")
        for batch in _column(storage, candidates, schemas.CANDIDATES, name)
    )


def _totals(storage: Storage, paths: RunPaths, files: Files, manifest: Mapping[str, Any]) -> Totals:
    """From the manifest, or where that lacks them, from the files."""
    ranked, candidates = (
        sum(fragment.rows for fragment in files[table]) for table in (InputTable.RANKED, InputTable.CANDIDATE)
    )
    counts = manifest.get("counts") or {}
    if counts.keys() >= {"truncated", "candidates"} and "rejected" in manifest:
        return Totals(counts["candidates"], ranked, counts["truncated"], dict(sorted(manifest["rejected"].items())))
    truncated = sum(
        pc.sum(batch["truncated"]).as_py() or 0
        for batch in _column(storage, files[InputTable.RANKED], schemas.RANKED, "truncated")
    )
    rejects: Counter[str] = Counter()
    if storage.list_names(paths.rejected):  # a run without rejects may have no such folder
        for batch in _column(storage, fragments(storage, paths.rejected, schemas.REJECTED), schemas.REJECTED, "reason"):
            for row in pc.value_counts(batch["reason"]).to_pylist():
                rejects[row["values"]] += row["counts"]
    return Totals(candidates, ranked, truncated, dict(sorted(rejects.items())))


def _column(storage: Storage, files: Sequence[Fragment], schema: pa.Schema, name: str) -> Iterator[pa.RecordBatch]:
    for fragment in files:
        for _, _, batch in read_table_file(storage, fragment.file, schema, [name]):
            yield batch
