"""Turn the small scores query-major: ranked, labelled lists and rejects, in sorted files that repeat bit for bit."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from lakerank.lake.scores import PlannedUnits, read_unit
from lakerank.lake.storage import Storage, join
from lakerank.schemas import REJECTED
from lakerank.spark.plan.cut import UNIT_GROUPS
from lakerank.spark.plan.files import part_name, read_part, read_rejects, read_reused
from lakerank.spark.plan.join import ROWS_AT_ONCE
from lakerank.spark.plan.queries import QueryList
from lakerank.spark.rank.combine import STAGE_RESULTS, FusionRule, combine
from lakerank.spark.rank.write import FILE_REPORT, SCORED, RankRule, single_list, write_file
from lakerank.spark.runtime.frames import describe_job, parallelism, scatter
from lakerank.spark.runtime.shuffle import BATCHES, exchange, pack

__all__ = ["FILE_REPORT", "Lists", "RankRule", "Results", "align", "file_of", "write_lists"]

SCORED_KIND, _REJECTED_KIND, _RESULT_KIND = 0, 1, 2
_REJECTED = pa.schema([field.with_nullable(True) for field in REJECTED])

Int64 = npt.NDArray[np.int64]
FileWork = Callable[[int, dict[int, pa.Table]], Iterator[pa.RecordBatch]]


@dataclass(frozen=True, slots=True)
class Lists:
    """How lists are spread over files: the first query of each file but the first, by number and by id."""

    queries: QueryList
    firsts: tuple[int, ...]
    first_ids: tuple[str, ...]

    def of_numbers(self, numbers: Int64) -> Int64:
        """The file of each query (N,) by its number."""
        return np.asarray(np.searchsorted(np.asarray(self.firsts, dtype=np.int64), numbers, side="right"))

    def of_ids(self, ids: pa.Array) -> Int64:
        """The file of each query (N,) by its id, which need not be in the lake; null goes to the first."""
        coded = ids.dictionary_encode()
        edges = [edge.encode() for edge in self.first_ids]
        files = [bisect_right(edges, ident.encode()) for ident in coded.dictionary.to_pylist()]
        return np.asarray(np.asarray([*files, 0], dtype=np.int64)[coded.indices.fill_null(-1).to_numpy()])

    def ids(self, file: int) -> tuple[int, pa.Array]:
        """The number of a file's first query, and the ids of all its queries."""
        edges = (0, *self.firsts, self.queries.count)
        return edges[file], self.queries.ids(edges[file], edges[file + 1])


@dataclass(frozen=True, slots=True)
class Results:
    """Where a run's results lie: units with their scores, and the plan's pairs that need none."""

    storage: Storage
    output: str
    scorer: str
    plan_folder: str
    units: PlannedUnits
    pairs: int


def write_lists(
    spark: SparkSession,
    results: Results,
    lists: Lists,
    rule: RankRule,
    ranked: str,
    rejected: str,
    watched: Collection[tuple[str, str]] = (),
) -> pa.Table:
    """Write the folders `ranked` and `rejected`: sorted by query, logit descending and doc_id; no query is split.

    Args:
        watched: pairs whose logits the report gives, where they have one.

    Returns:
        FILE_REPORT, sorted by table and file.
    """
    storage, pairs = results.storage, frozenset(watched)

    def work(number: int, tables: dict[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        listed = single_list(tables[SCORED_KIND], lists.ids(number), rule)
        rejects = tables[_REJECTED_KIND]
        yield from write_file(storage, number, listed, rejects, rule.depth, ranked, rejected, pairs)

    frames = result_frames(spark, results, lists, lambda rows: scored_batches(rows, lists))
    frames.append(_planned_rejects(spark, results, lists))
    return _written(spark, frames, lists, {SCORED_KIND: SCORED, _REJECTED_KIND: _REJECTED}, work)


def write_fused_lists(
    spark: SparkSession,
    passes: Sequence[Results],
    lists: Lists,
    rule: FusionRule,
    ranked: str,
    rejected: str,
    watched: Collection[tuple[str, str]] = (),
) -> pa.Table:
    """The same for a run of several passes: every pass's results of a query meet, and become one list."""
    storage, pairs = passes[0].storage, frozenset(watched)

    def work(number: int, tables: dict[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        listed, late = combine(tables[_RESULT_KIND], lists.ids(number), rule)
        rejects = pa.concat_tables([tables[_REJECTED_KIND], late.cast(_REJECTED)])
        yield from write_file(storage, number, listed, rejects, rule.depth, ranked, rejected, pairs)

    frames = [_planned_rejects(spark, passes[0], lists)]
    for number, results in enumerate(passes, start=1):
        frames += result_frames(spark, results, lists, partial(_pass_blocks, lists=lists, number=number))
    return _written(spark, frames, lists, {_RESULT_KIND: STAGE_RESULTS, _REJECTED_KIND: _REJECTED}, work)


def result_frames(
    spark: SparkSession, results: Results, lists: Lists, blocks: Callable[[pa.Table], Iterator[pa.RecordBatch]]
) -> list[DataFrame]:
    """A pass's results, scored now or before, as frames of the BATCHES that `blocks` makes of them.

    `blocks` gets tables with the columns of SCORED, `reason`, `detail` and, where `logit` is null, `query_id`.
    """
    return [
        scatter(spark, _unit_ranges(spark, results), lambda piece: blocks(_unit_rows(results, piece)), BATCHES),
        scatter(
            spark,
            storage_names(results, "reused"),
            lambda name: blocks(_reused_rows(read_reused(results.storage, results.plan_folder, name), lists)),
            BATCHES,
        ),
    ]


def storage_names(results: Results, folder: str) -> list[str]:
    """Names of the files in a folder of a plan."""
    return results.storage.list_names(join(results.plan_folder, folder))


def _planned_rejects(spark: SparkSession, results: Results, lists: Lists) -> DataFrame:
    return scatter(
        spark,
        storage_names(results, "rejects"),
        lambda name: _reject_blocks(read_rejects(results.storage, results.plan_folder, name), lists),
        BATCHES,
    )


def _written(
    spark: SparkSession, blocks: Sequence[DataFrame], lists: Lists, kinds: Mapping[int, pa.Schema], work: FileWork
) -> pa.Table:
    """Bring each file's blocks together and write it."""
    files = len(lists.firsts) + 1
    describe_job(spark, f"rank: write {files} files of lists")
    report = exchange(blocks, files, kinds, work, FILE_REPORT).toArrow()
    # Spark runs no task for what it knows to be empty: the files that are missing are empty ones.
    written = set(report["file"].to_pylist())
    empty = {kind: schema.empty_table() for kind, schema in kinds.items()}
    missing = [b for n in range(files) if part_name(n) not in written for b in work(n, empty)]
    whole = pa.concat_tables([report.cast(FILE_REPORT), pa.Table.from_batches(missing, schema=FILE_REPORT)])
    return whole.sort_by([("table", "ascending"), ("file", "ascending")])


def file_of(boundaries: Sequence[str]) -> Column:
    """The number of the file that a query's rows go to, by its id: how many boundaries it has reached."""
    if not boundaries:
        return F.lit(0)
    edges = F.array(*(F.lit(edge) for edge in boundaries))
    return F.coalesce(F.size(F.filter(edges, lambda edge: edge <= F.col("query_id"))), F.lit(0))


def align(unit: pa.Table, scores: pa.Table) -> pa.Table:
    """A unit's scores with what its plan knows of each pair. Columns: SCORED, `reason`, `detail`, `query_id`."""
    lists = unit["queries"].combine_chunks()
    queries = lists.flatten()
    rows = np.repeat(np.arange(unit.num_rows), pc.list_value_length(lists).to_numpy())
    documents = unit["doc_id"].combine_chunks().dictionary_encode()
    names = queries.field("query_id").dictionary_encode()
    width = len(names.dictionary) + 1
    keys = documents.indices.to_numpy().astype(np.int64)[rows] * width + names.indices.to_numpy()
    order = np.argsort(keys)
    codes = [
        pc.index_in(scores[name].combine_chunks(), value_set=values).fill_null(-1).to_numpy().astype(np.int64)
        for name, values in (("doc_id", documents.dictionary), ("query_id", names.dictionary))
    ]
    found = codes[0] * width + codes[1]
    at = np.minimum(np.searchsorted(keys[order], found), max(0, len(keys) - 1))
    known = (codes[0] >= 0) & (codes[1] >= 0) & ((keys[order][at] == found) if len(keys) else False)
    scores, pair = scores.filter(pa.array(known)), pa.array(order[at[known]])
    truncated = pc.or_kleene(scores["query_truncated"], scores["document_truncated"])
    arrays = [queries.field("number").take(pair), scores["doc_id"], queries.field("rank").take(pair), scores["logit"]]
    own = pa.array(np.ones(scores.num_rows, bool))
    table = pa.Table.from_arrays([*arrays, truncated.fill_null(False), own], schema=SCORED)
    for name in ("reason", "detail", "query_id"):
        table = table.append_column(name, scores[name])
    return table


def _unit_ranges(spark: SparkSession, results: Results) -> list[tuple[int, int]]:
    """Ranges of units of about ROWS_AT_ONCE pairs each, so that a block is not too small; at least one a task slot."""
    count = len(results.units)
    pieces = min(count, max(2 * parallelism(spark), results.pairs // ROWS_AT_ONCE))
    return [(piece * count // pieces, (piece + 1) * count // pieces) for piece in range(pieces)]


def _unit_rows(results: Results, piece: tuple[int, int]) -> pa.Table:
    tables = []
    for number in range(*piece):
        unit = results.units[number]
        address = join(results.plan_folder, "units", f"{unit}.parquet")
        plan = read_part(results.storage, address, UNIT_GROUPS)
        tables.append(align(plan, read_unit(results.storage, results.output, results.scorer, unit)))
    return pa.concat_tables(tables).combine_chunks()


def _reused_rows(rows: pa.Table, lists: Lists) -> pa.Table:
    own = pa.array(np.zeros(rows.num_rows, bool))
    columns = {"truncated": rows["truncated"].fill_null(False), "own": own}
    arrays = [columns[name] if name in columns else rows[name] for name in SCORED.names]
    table = pa.Table.from_arrays(arrays, schema=SCORED)
    query_ids = _ids_of(rows.filter(pc.is_null(rows["logit"])), lists)
    positions = np.cumsum(pc.is_null(rows["logit"]).to_numpy()) - 1
    ids = query_ids.take(pa.array(np.maximum(positions, 0))) if len(query_ids) else pa.nulls(rows.num_rows, pa.string())
    for name, values in (("reason", rows["reason"]), ("detail", rows["detail"]), ("query_id", ids)):
        table = table.append_column(name, values)
    return table


def _ids_of(rows: pa.Table, lists: Lists) -> pa.Array:
    """Query ids of REUSED rows: only stored rejects need them here."""
    if not rows.num_rows:
        return pa.array([], pa.string())
    return lists.queries.column("query_id").take(rows["query"].combine_chunks())


def scored_batches(rows: pa.Table, lists: Lists) -> Iterator[pa.RecordBatch]:
    """Results with a logit as SCORED blocks, the others as rejects."""
    scored = pc.is_valid(rows["logit"])
    good = rows.filter(scored).select(SCORED.names)
    numbers = good["query"].to_numpy().astype(np.int64)
    # By query within a block: neighbours then differ little, and the block packs well.
    order = np.argsort(numbers, kind="stable")
    files = lists.of_numbers(numbers[order])
    yield from pack(SCORED_KIND, files, good.take(pa.array(order)))
    yield from _reject_blocks(rows.filter(pc.invert(scored)).select(_REJECTED.names), lists)


def _pass_blocks(rows: pa.Table, lists: Lists, number: int) -> Iterator[pa.RecordBatch]:
    """Results of a pass with or without a logit, as STAGE_RESULTS blocks."""
    rows = rows.append_column("pass", pa.array(np.full(rows.num_rows, number, np.int8)))
    numbers = rows["query"].to_numpy().astype(np.int64)
    order = np.argsort(numbers, kind="stable")
    rows = rows.select(STAGE_RESULTS.names).cast(STAGE_RESULTS).take(pa.array(order))
    yield from pack(_RESULT_KIND, lists.of_numbers(numbers[order]), rows)


def _reject_blocks(rows: pa.Table, lists: Lists) -> Iterator[pa.RecordBatch]:
    if not rows.num_rows:
        return
    if "detail" not in rows.column_names:
        rows = rows.append_column("detail", pa.nulls(rows.num_rows, pa.string()))
    files = lists.of_ids(rows["query_id"].combine_chunks())
    order = np.argsort(files, kind="stable")
    yield from pack(_REJECTED_KIND, files[order], rows.take(pa.array(order)).cast(_REJECTED))
