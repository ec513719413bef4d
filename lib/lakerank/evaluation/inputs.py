"""What an evaluation reads: the files of every table, found and checked before anything is judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lakerank import schemas
from lakerank.evaluation.analysis.slices import DIMENSIONS, MOST_VALUES
from lakerank.evaluation.attributes import attribute_batches
from lakerank.evaluation.partials import Rule
from lakerank.evaluation.rows import Source
from lakerank.lake.runs import RunPaths, read_manifest
from lakerank.lake.storage import Storage
from lakerank.lake.tables import Fragment, fragments, opened, read_table_file

#: The column of queries and documents that is shown instead of an id.
NAME = "name"

#: Columns of the queries table that say which benchmark a query belongs to, and to which part of it.
BENCHMARK_LABELS = ("benchmark", "dataset", "subset")


@dataclass(frozen=True, slots=True)
class LakeTables:
    """Where the lake's tables are."""

    documents: str
    queries: str
    candidates: str
    qrels: str


@dataclass(frozen=True, slots=True)
class Totals:
    """What a run has of everything, whether it is judged or not."""

    candidates: int
    ranked: int
    truncated: int
    rejected: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Inputs:
    """The files to read, and how to judge. `labels` are the queries' extra columns to read."""

    tables: LakeTables
    paths: RunPaths
    against: RunPaths | None
    files: Mapping[Source, tuple[Fragment, ...]]
    documents: tuple[Fragment, ...]
    labels: tuple[str, ...]
    rule: Rule
    totals: Totals
    manifest: Mapping[str, Any]

    @property
    def rows(self) -> int:
        """Rows to bring together."""
        return sum(fragment.rows for files in self.files.values() for fragment in files)

    def pieces(self, source: Source) -> list[tuple[str, int]]:
        """(file, row group) of a table."""
        return pieces(self.files[source])


def pieces(files: tuple[Fragment, ...]) -> list[tuple[str, int]]:
    """(file, row group) of every row group."""
    return [(fragment.file.uri, group) for fragment in files for group in range(fragment.row_groups)]


def find_inputs(storage: Storage, tables: LakeTables, paths: RunPaths, against: RunPaths | None = None) -> Inputs:
    """Find every file and check its schema.

    Raises:
        StorageError: a table or a run is not there.
        SchemaError: a table lacks a column.
    """
    files = {
        Source.QUERY: fragments(storage, tables.queries, schemas.QUERIES),
        Source.QREL: fragments(storage, tables.qrels, schemas.QRELS),
        Source.CANDIDATE: fragments(storage, tables.candidates, schemas.CANDIDATES),
        Source.RANKED: fragments(storage, paths.ranked, schemas.RANKED),
        Source.AGAINST: [] if against is None else fragments(storage, against.ranked, schemas.RANKED),
    }
    found = {source: tuple(ones) for source, ones in files.items()}
    dimensions = _telling_dimensions(storage, found[Source.QUERY])
    manifest = read_manifest(storage, paths.output, paths.run_id) or {}
    return Inputs(
        tables,
        paths,
        against,
        found,
        tuple(fragments(storage, tables.documents, schemas.DOCUMENTS)),
        tuple(dict.fromkeys((*dimensions, *BENCHMARK_LABELS, NAME))),
        Rule(_has_order(storage, found[Source.CANDIDATE]), against is not None, dimensions),
        _totals(storage, paths, found, manifest),
        manifest,
    )


def _telling_dimensions(storage: Storage, files: tuple[Fragment, ...]) -> tuple[str, ...]:
    """The columns that say what kind of query one is, rather than which."""
    values: dict[str, set[str]] = {name: set() for name in DIMENSIONS}
    for uri, group in pieces(files):
        for _, batch in attribute_batches(storage, uri, group, schemas.QUERIES, DIMENSIONS):
            for name, found in values.items():
                if len(found) <= MOST_VALUES:
                    found.update(value for value in pc.unique(batch[name]).to_pylist() if value is not None)
    return tuple(name for name, found in values.items() if 0 < len(found) <= MOST_VALUES)


def _has_order(storage: Storage, files: tuple[Fragment, ...]) -> bool:
    """Whether any candidate has a rank or a score: then the first stage's order can be told."""
    for uri, group in pieces(files):
        with opened(storage, uri) as parquet:
            names = [name for name in ("first_stage_rank", "first_stage_score") if name in parquet.schema_arrow.names]
            metadata = parquet.metadata.row_group(group)
            chunks = [metadata.column(number) for number in range(metadata.num_columns)]
            held = {chunk.path_in_schema: chunk for chunk in chunks}
            for name in names:
                statistics = held[name].statistics
                if statistics is not None and statistics.has_null_count:
                    if statistics.null_count < metadata.num_rows:
                        return True
                elif any(
                    batch[0].null_count < batch.num_rows
                    for batch in parquet.iter_batches(row_groups=[group], columns=[name])
                ):
                    return True
    return False


def _totals(
    storage: Storage, paths: RunPaths, files: Mapping[Source, tuple[Fragment, ...]], manifest: Mapping[str, Any]
) -> Totals:
    ranked, listed = (sum(one.rows for one in files[source]) for source in (Source.RANKED, Source.CANDIDATE))
    counts = manifest.get("counts") or {}
    if counts.keys() >= {"truncated", "candidates"} and "rejected" in manifest:
        return Totals(counts["candidates"], ranked, counts["truncated"], dict(sorted(manifest["rejected"].items())))
    truncated = sum(
        pc.sum(batch["truncated"]).as_py() or 0
        for batch in _column(storage, files[Source.RANKED], schemas.RANKED, "truncated")
    )
    rejects: Counter[str] = Counter()
    if storage.list_names(paths.rejected):  # a run without rejects may have no such folder
        found = tuple(fragments(storage, paths.rejected, schemas.REJECTED))
        for batch in _column(storage, found, schemas.REJECTED, "reason"):
            for one in pc.value_counts(batch["reason"]).to_pylist():
                rejects[one["values"]] += one["counts"]
    return Totals(listed, ranked, truncated, dict(sorted(rejects.items())))


def _column(storage: Storage, files: tuple[Fragment, ...], schema: pa.Schema, name: str) -> Iterator[pa.RecordBatch]:
    for fragment in files:
        for _, _, batch in read_table_file(storage, fragment.file.uri, schema, [name]):
            yield batch
