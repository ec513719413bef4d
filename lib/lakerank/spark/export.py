"""Write a published run, or what changed since another, in a format: parts by tasks, one manifest at the end."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from lakerank.export.format import Change, Format, PartLimits, Piece, Row, changes, parts
from lakerank.export.job import Export, fingerprint_of, finish, finished, run_files
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import Fragment, decode_text, fragments, read_table_file
from lakerank.rerank.plan.pairs import RowRange, read_rows, row_ranges
from lakerank.rerank.rank.lists import ranked_batches
from lakerank.runner import gather, one_row
from lakerank.schemas import CANDIDATES, QUERIES, RANKED
from lakerank.spark.publish import read_ranked
from lakerank.spark.runtime.frames import describe_job, parallelism, scatter
from lakerank.spark.runtime.runner import SparkRunner

#: What a task reports: a file that it wrote (`part` or `removal`), or how many lists a change befell.
_REPORT = pa.schema([
    ("kind", pa.string()), ("name", pa.string()), ("rows", pa.int64()), ("lists", pa.int64()), ("bytes", pa.int64()),
    ("sha256", pa.string()),
])  # fmt: skip

_COUNTS = pa.schema([("file", pa.int64()), ("first", pa.string()), ("queries", pa.int64())])
_TEXTS = pa.schema([("query_id", pa.string()), ("query_text", pa.string())])


@dataclass(frozen=True, slots=True)
class _Task:
    """What every task of an export needs. Its fingerprint is in the names of the files, so that two exports differ."""

    storage: Storage
    to: str
    made_from: str
    form: Format
    limits: PartLimits

    def name(self, kind: str, *numbers: int, suffix: str) -> str:
        return f"{kind}-{self.made_from[:8]}-{'-'.join(f'{number:05d}' for number in numbers)}{suffix}"

    def write(self, number: int, rows: Iterable[Row], first_number: int = 1) -> Iterator[pa.RecordBatch]:
        """Encode sorted rows and write the files of one task; the same rows give the same names and bytes."""
        counts: Counter[Change] = Counter()
        removed: list[str] = []

        def pieces() -> Iterator[Piece]:
            for changed in changes(rows, self.form, first_number):
                counts[changed.change] += 1
                if changed.current is None and self.form.remove is None:
                    removed.append(changed.key)
                elif changed.current is None and self.form.remove is not None:
                    yield Piece(self.form.remove(changed.key), 0)
                elif changed.current is not None and changed.change is not Change.UNCHANGED:
                    yield Piece(self.form.encode(changed.current), len(changed.current.rows))

        for sequence, part in enumerate(parts(pieces(), self.limits)):
            data = self.form.finish([piece.data for piece in part])
            name = self.name("part", number, sequence, suffix=self.form.suffix)
            yield self._put("part", name, data, sum(piece.rows for piece in part), len(part))
        if removed:
            lines = "".join(json.dumps({self.form.by: key}, ensure_ascii=False) + "\n" for key in removed)
            yield self._put("removal", self.name("_removed", number, suffix=".jsonl"), lines.encode(), 0, len(removed))
        for change, lists in counts.items():
            yield one_row(_REPORT, change.value, "", 0, lists, 0, "")

    def _put(self, kind: str, name: str, data: bytes, rows: int, lists: int) -> pa.RecordBatch:
        self.storage.replace(join(self.to, name), data)
        return one_row(_REPORT, kind, name, rows, lists, len(data), hashlib.sha256(data).hexdigest())


def export_run(spark: SparkSession, storage: Storage, export: Export) -> dict[str, object]:
    """Write the parts, then the manifest that names them. Returns the manifest in effect.

    Raises:
        ExportError: a run is not published, or an id does not fit the format.
        RunConflictError: the folder holds something else.
    """
    manifest = finished(storage, export)
    if manifest is not None:
        return manifest
    form = export.form
    task = _Task(storage, export.to, fingerprint_of(storage, export), form, export.limits)
    describe_job(spark, f"export: {export.format} of run {export.run_id}")
    as_stored = export.since is None and export.pairs is None and form.by == "query_id"
    as_stored = as_stored and not form.needs_query_text and not form.needs_first_stage_score
    files = run_files(storage, export.output, export.run_id)
    reports = (_from_files if as_stored else _from_frame)(spark, files, export, task)
    return finish(storage, export, task.made_from, reports.to_pylist())


def _from_files(spark: SparkSession, files: Sequence[str], export: Export, task: _Task) -> pa.Table:
    """Each file of ranked/ by a task of its own, as it is stored: no shuffle."""
    first = _first_queries(spark, task.storage, files)[1] if task.form.numbered else [1] * len(files)

    def work(number: int) -> Iterator[pa.RecordBatch]:
        batches = ranked_batches(task.storage, files[number], export.depth)
        yield from task.write(number, (row for batch in batches for row in batch.to_pylist()), first[number])

    return gather(SparkRunner(spark), range(len(files)), work, _REPORT)


def _from_frame(spark: SparkSession, files: Sequence[str], export: Export, task: _Task) -> pa.Table:
    """Lists put together by a shuffle of keys: from two runs, by document, or with columns of other tables."""
    rows, first = _rows(spark, task.storage, export, files), None
    if task.form.by == "doc_id":
        # Parts depend on the run alone: so many rows each, cut by a hash.
        row_count = sum(fragment.rows for file in files for fragment in fragments(task.storage, file, RANKED))
        count = max(1, -(-row_count // export.limits.rows))
        part: Column = F.pmod(F.xxhash64("doc_id"), F.lit(count)).cast("int")
        order = ["doc_id", "is_old", "query_id"]
    else:
        # … or those of the newer run's files.
        queries, first = _first_queries(spark, task.storage, files)
        part, count, order = _file_of(queries[1:]), max(1, len(files)), ["query_id", "is_old", "rank"]
    frame = rows.withColumn("part", part).repartitionById(count, "part").sortWithinPartitions(*order)

    def work(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        rows = (row for batch in batches for row in batch.to_pylist())
        head = next(rows, None)
        if head is not None:
            number = head["part"]
            yield from task.write(number, chain([head], rows), first[number] if first else 1)

    return frame.mapInArrow(work, from_arrow_schema(_REPORT)).toArrow()


def _rows(spark: SparkSession, storage: Storage, export: Export, files: Sequence[str]) -> DataFrame:
    """All rows of the lists of a run, and of the older one. Columns: RANKED, is_old, and what the format needs."""
    rows = read_ranked(spark, storage, files, export.depth).withColumn("is_old", F.lit(False))
    if export.since is not None:
        old = read_ranked(spark, storage, run_files(storage, export.output, export.since), export.depth)
        rows = rows.unionAll(old.withColumn("is_old", F.lit(True)))
    if export.pairs is not None:
        # By hash: the same pairs each time, spread over the whole run.
        rows = rows.orderBy(F.xxhash64("query_id", "doc_id"), "query_id", "doc_id").limit(export.pairs)
    if export.form.needs_query_text:
        rows = rows.join(_texts(spark, storage, export.queries), "query_id", "left")
    if export.form.needs_first_stage_score:
        candidates = _read_candidates(spark, storage, fragments(storage, export.candidates, CANDIDATES))
        scores = candidates.groupBy("query_id", "doc_id").agg(F.max("first_stage_score").alias("first_stage_score"))
        rows = rows.join(scores, ["query_id", "doc_id"], "left")
    return rows


def _first_queries(spark: SparkSession, storage: Storage, files: Sequence[str]) -> tuple[list[str], list[int]]:
    """The first query of each file and its number, from 1 over all files; a query is in one file, none is empty."""

    def count(number: int) -> Iterator[pa.RecordBatch]:
        first = last = None
        total = 0
        for _, _, batch in read_table_file(storage, files[number], RANKED, ["query_id"]):
            ids = batch.column(0).unique().to_pylist()
            if ids:
                total += len(ids) - (ids[0] == last)  # a query may span two batches
                first, last = ids[0] if first is None else first, ids[-1]
        yield one_row(_COUNTS, number, first, total)

    rows = gather(SparkRunner(spark), range(len(files)), count, _COUNTS).sort_by("file")
    return rows["first"].to_pylist(), [*accumulate(rows["queries"].to_pylist(), initial=1)]


def _read_candidates(spark: SparkSession, storage: Storage, files: Sequence[Fragment]) -> DataFrame:
    """Every listed pair. Columns: CANDIDATES."""

    def read(rows: RowRange) -> Iterator[pa.RecordBatch]:
        yield from read_rows(storage, rows, CANDIDATES.names)

    schema = pa.schema([field.with_nullable(True) for field in CANDIDATES])
    return scatter(spark, row_ranges(files, 2 * parallelism(spark)), read, schema)


def _file_of(boundaries: Sequence[str]) -> Column:
    """The number of the file that a query's rows go to, by its id: how many boundaries it has reached."""
    if not boundaries:
        return F.lit(0)
    edges = F.array(*(F.lit(edge) for edge in boundaries))
    return F.coalesce(F.size(F.filter(edges, lambda edge: edge <= F.col("query_id"))), F.lit(0))


def _texts(spark: SparkSession, storage: Storage, address: str) -> DataFrame:
    """The text of every query that has one; of a query with several rows, one of its texts, always the same."""

    def read(file: str) -> Iterator[pa.RecordBatch]:
        for _, _, batch in read_table_file(storage, file, QUERIES, ["query_id", "text"]):
            texts = [_text(raw) for raw in batch["text"].to_pylist()]
            yield pa.RecordBatch.from_arrays([batch["query_id"], pa.array(texts, pa.string())], schema=_TEXTS)

    files = [fragment.file.uri for fragment in fragments(storage, address, QUERIES)]
    rows = scatter(spark, files, read, _TEXTS, tasks=4 * parallelism(spark))
    return rows.groupBy("query_id").agg(F.min("query_text").alias("query_text"))


def _text(raw: bytes | None) -> str | None:
    try:
        return decode_text(raw) or None
    except UnicodeDecodeError:
        return None
