"""Turns scores query-major: ranked, labelled lists and rejects, in sorted files that repeat bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lakerank.lake.scores import PlannedUnits, read_unit
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import read_table_file
from lakerank.plan.index import RankedFiles
from lakerank.plan.pairs import REJECTS
from lakerank.plan.partitions import REUSED
from lakerank.plan.plan import BATCH_ROWS, part_name, read_part, with_columns
from lakerank.plan.units import NOT_LISTED, UNIT_GROUPS
from lakerank.rerank.rank.combine import STAGE_RESULTS, FusionRule, combine
from lakerank.rerank.rank.write import FILE_REPORT, SCORED, ListFolders, RankRule, rank_pairs, write_file
from lakerank.runner import BATCHES, Rows, Runner, Work, pack
from lakerank.schemas import MEMBERSHIPS, RANKED, REJECTED

SCORED_KIND, _REJECTED_KIND, _RESULT_KIND = 0, 1, 2
_REJECTED = pa.schema([field.with_nullable(True) for field in REJECTED])

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Results:
    """Where a scorer's results are: units with their scores, and the plan's files of pairs that needed no scoring."""

    storage: Storage
    output: str
    scorer: str
    plan_folder: str
    units: PlannedUnits
    pairs: int

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder of the plan."""
        return self.storage.list_names(join(self.plan_folder, folder))

    def read(self, folder: str, name: str, schema: pa.Schema) -> pa.Table:
        """A file in a folder of the plan."""
        return read_part(self.storage, join(self.plan_folder, folder, name), schema)


def write_lists(
    runner: Runner,
    stages: Sequence[Results],
    lists: RankedFiles,
    rule: RankRule | FusionRule,
    folders: ListFolders,
) -> pa.Table:
    """Write the ranked and rejected folders: sorted by query, logit descending and doc_id; no query is split.

    Args:
        stages: results of the run's scorer; with a FusionRule those of every stage.

    Returns:
        FILE_REPORT, sorted by table and file.
    """
    kinds = {_REJECTED_KIND: _REJECTED}
    kinds |= {_RESULT_KIND: STAGE_RESULTS} if isinstance(rule, FusionRule) else {SCORED_KIND: SCORED}

    def work(number: int, tables: dict[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        ids, rejects = lists.ids(number), tables[_REJECTED_KIND]
        if isinstance(rule, FusionRule):
            ranked, unscored = combine(tables[_RESULT_KIND], ids, rule)
            rejects = pa.concat_tables([rejects, unscored.cast(_REJECTED)])
        else:
            ranked = rank_pairs(tables[SCORED_KIND], ids, rule)
        yield from write_file(folders, number, ranked, rejects)

    def planned_rejects(name: str) -> Iterator[pa.RecordBatch]:
        rows = stages[0].read("rejects", name, REJECTS)
        yield from _reject_batches(rows.append_column("detail", pa.nulls(rows.num_rows, pa.string())), lists)

    frames = [runner.scatter(stages[0].names("rejects"), planned_rejects, BATCHES)]
    for stage, results in enumerate(stages, start=1):
        of_stage = partial(_stage_batches, stage=stage) if isinstance(rule, FusionRule) else scored_batches
        frames += result_batches(runner, results, lists, partial(of_stage, lists=lists))
    files = len(lists.firsts) + 1
    runner.describe(f"rank: write {files} files of lists")
    report = runner.collect(runner.exchange(frames, files, kinds, work, FILE_REPORT), FILE_REPORT)
    # There is no task for an empty partition: those files are written here.
    written = set(report["file"].to_pylist())
    empty = {kind: schema.empty_table() for kind, schema in kinds.items()}
    missing = [b for number in range(files) if part_name(number) not in written for b in work(number, empty)]
    whole = pa.concat_tables([report, pa.Table.from_batches(missing, schema=FILE_REPORT)])
    return whole.sort_by([("table", "ascending"), ("file", "ascending")])


def ranked_batches(
    storage: Storage, file: str, depth: int | None = None, schema: pa.Schema = RANKED
) -> Iterator[pa.RecordBatch]:
    """One file of ranked/ in its order, down to a rank."""
    for _, _, batch in read_table_file(storage, file, schema):
        yield batch if depth is None else batch.filter(pc.less_equal(batch["rank"], depth))


def result_batches(runner: Runner, results: Results, lists: RankedFiles, to_batches: Work[pa.Table]) -> list[Rows]:
    """A scorer's results, of this run and of earlier ones, as the BATCHES that `to_batches` makes of them.

    `to_batches` gets tables with the columns of SCORED, `reason`, `detail` and, where `logit` is null, `query_id`.
    """
    # Ranges of units of about BATCH_ROWS pairs each, so that batches are not too small; at least one a task slot.
    count = len(results.units)
    ranges = min(count, max(2 * runner.parallelism, results.pairs // BATCH_ROWS))
    units = [(number * count // ranges, (number + 1) * count // ranges) for number in range(ranges)]
    new = runner.scatter(units, lambda numbers: to_batches(_unit_rows(results, numbers)), BATCHES)
    reused = runner.scatter(
        results.names("reused"), lambda name: to_batches(_reused_rows(results, name, lists)), BATCHES
    )
    return [new, reused]


def scored_batches(rows: pa.Table, lists: RankedFiles) -> Iterator[pa.RecordBatch]:
    """Results with a logit as BATCHES of SCORED, the others as rejects."""
    scored = pc.is_valid(rows["logit"])
    yield from by_query(SCORED_KIND, rows.filter(scored).select(SCORED.names), lists)
    yield from _reject_batches(rows.filter(pc.invert(scored)).select(_REJECTED.names), lists)


def align(unit: pa.Table, scores: pa.Table) -> pa.Table:
    """A unit's scores with what its plan has on each pair. Columns: SCORED, `reason`, `detail`, `query_id`."""
    lists = unit["queries"].combine_chunks()
    queries = lists.flatten()
    rows = np.repeat(np.arange(unit.num_rows), pc.list_value_length(lists).to_numpy())
    documents = unit["doc_id"].combine_chunks().dictionary_encode()
    names = queries.field("query_id").dictionary_encode()
    width = len(names.dictionary) + 1
    planned = documents.indices.to_numpy().astype(np.int64)[rows] * width + names.indices.to_numpy()
    order = np.argsort(planned)
    doc_codes, query_codes = (
        pc.index_in(scores[name].combine_chunks(), value_set=values).fill_null(-1).to_numpy().astype(np.int64)
        for name, values in (("doc_id", documents.dictionary), ("query_id", names.dictionary))
    )
    keys = doc_codes * width + query_codes
    at = np.minimum(np.searchsorted(planned[order], keys), max(0, len(planned) - 1))
    known = (doc_codes >= 0) & (query_codes >= 0) & ((planned[order][at] == keys) if len(planned) else False)
    scores, pair = scores.filter(pa.array(known)), pa.array(order[at[known]])
    truncated = pc.or_kleene(scores["query_truncated"], scores["document_truncated"])
    arrays = [queries.field("number").take(pair), scores["doc_id"], queries.field("rank").take(pair), scores["logit"]]
    new = pa.array(np.ones(scores.num_rows, bool))
    of_rows = unit.select(MEMBERSHIPS.names).take(pa.array(rows).take(pair)).combine_chunks().columns
    table = pa.Table.from_arrays([*arrays, truncated.fill_null(False), new, *of_rows], schema=SCORED)
    for name in ("reason", "detail", "query_id"):
        table = table.append_column(name, scores[name])
    listed = table.filter(pc.not_equal(table["rank"], NOT_LISTED))
    return pa.concat_tables([listed, _sharing(unit, table, rows[pair.to_numpy()])])


def _sharing(unit: pa.Table, results: pa.Table, rows: Int64) -> pa.Table:
    """The pairs that share one of a unit's results, each of a row of the unit: with that result, and what is theirs."""
    lists = unit["shared"].combine_chunks()
    shared = lists.flatten()
    if not len(shared):
        return results.slice(0, 0)
    of_rows = np.repeat(np.arange(unit.num_rows), pc.list_value_length(lists).fill_null(0).to_numpy())
    keys = (rows << 32) | results["query"].to_numpy()
    order = np.argsort(keys)
    wanted = (of_rows << 32) | shared.field("of").to_numpy()
    at = np.minimum(np.searchsorted(keys[order], wanted), max(0, len(keys) - 1))
    has = pa.array(keys[order][at] == wanted if len(keys) else np.zeros(len(wanted), bool))
    shared = shared.filter(has)
    own = {"query": "number"} | {name: name for name in ("doc_id", "rank", "new", *MEMBERSHIPS.names, "query_id")}
    table = results.take(pa.array(order[at]).filter(has) if len(keys) else pa.array([], pa.int64()))
    return with_columns(table, results.schema, **{name: shared.field(field) for name, field in own.items()})


def _unit_rows(results: Results, units: tuple[int, int]) -> pa.Table:
    tables = []
    for unit in results.units[slice(*units)]:
        plan = results.read("units", f"{unit}.parquet", UNIT_GROUPS)
        tables.append(align(plan, read_unit(results.storage, results.output, results.scorer, unit)))
    return pa.concat_tables(tables).combine_chunks()


def _reused_rows(results: Results, name: str, lists: RankedFiles) -> pa.Table:
    rows = results.read("reused", name, REUSED)
    rejected = pc.is_null(rows["logit"])
    ids = pa.nulls(rows.num_rows, pa.string())
    if pc.any(rejected).as_py():  # only stored rejects need ids, and a worker holds no more than it must
        numbers = pc.if_else(rejected, rows["query"], pa.scalar(None, pa.int32()))
        ids = lists.queries.column("query_id").take(numbers.combine_chunks())
    new = pa.array(np.zeros(rows.num_rows, bool))
    rows = rows.set_column(rows.column_names.index("truncated"), "truncated", rows["truncated"].fill_null(False))
    rows = rows.append_column("new", new).append_column("query_id", ids)
    return rows.select([*SCORED.names, "reason", "detail", "query_id"])


def _stage_batches(rows: pa.Table, lists: RankedFiles, stage: int) -> Iterator[pa.RecordBatch]:
    """Results of a stage with or without a logit, as BATCHES of STAGE_RESULTS."""
    rows = rows.append_column("stage", pa.array(np.full(rows.num_rows, stage, np.int8)))
    yield from by_query(_RESULT_KIND, rows.select(STAGE_RESULTS.names).cast(STAGE_RESULTS), lists)


def by_query(kind: int, rows: pa.Table, lists: RankedFiles) -> Iterator[pa.RecordBatch]:
    """Rows sorted by query: neighbours then differ little, and batches compress well."""
    numbers = rows["query"].to_numpy().astype(np.int64)
    order = np.argsort(numbers, kind="stable")
    yield from pack(kind, lists.of_numbers(numbers[order]), rows.take(pa.array(order)))


def _reject_batches(rows: pa.Table, lists: RankedFiles) -> Iterator[pa.RecordBatch]:
    if not rows.num_rows:
        return
    files = lists.of_ids(rows["query_id"].combine_chunks())
    yield from pack(_REJECTED_KIND, files, rows.select(_REJECTED.names).cast(_REJECTED))
