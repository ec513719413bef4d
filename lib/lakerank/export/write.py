"""Write a published run, or what changed since another, in a format: parts by tasks, one manifest at the end."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lakerank.export.format import Change, Format, PartLimits, Piece, Row, changes, parts
from lakerank.export.job import Export, fingerprint_of, finish, finished, run_files
from lakerank.fingerprint import splitmix64
from lakerank.lake.columns import decode_text
from lakerank.lake.snapshot import TableFile
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import fragments, read_table_file
from lakerank.plan.index import Chunk, files_of, table_chunks
from lakerank.plan.pairs import key_hash
from lakerank.rerank.rank.lists import ranked_batches
from lakerank.runner import BATCHES, Rows, Runner, Work, gather, one_row, pack
from lakerank.schemas import CANDIDATES, GROUP_IDS, QUERIES, RANKED

#: What a task reports: a file that it wrote (`part` or `removal`), or how many lists a change befell.
_REPORT = pa.schema([
    ("kind", pa.string()), ("name", pa.string()), ("rows", pa.int64()), ("lists", pa.int64()), ("bytes", pa.int64()),
    ("sha256", pa.string()),
])  # fmt: skip

_COUNTS = pa.schema([("file", pa.int64()), ("first", pa.string()), ("queries", pa.int64())])

#: Record types: rows of the run and of the older one, texts of queries, scores of candidates.
NEW, OLD, TEXT, SCORE = 0, 1, 2, 3
_RECORDS = {
    NEW: RANKED,
    OLD: RANKED,
    TEXT: pa.schema([("query_id", pa.string()), ("query_text", pa.string())]),
    SCORE: pa.schema([("query_id", pa.string()), ("doc_id", pa.string()), ("first_stage_score", pa.float64())]),
}

#: Those of an export by group: a document without a group is its own.
_GROUPED = pa.schema([*RANKED, *GROUP_IDS])
_GROUP_RECORDS = _RECORDS | {NEW: _GROUPED, OLD: _GROUPED}

#: Rows that are Python objects at once.
_BATCH_ROWS = 8192

Int64 = npt.NDArray[np.int64]


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
                if changed.current is not None:
                    if changed.change is not Change.UNCHANGED:
                        yield Piece(self.form.encode(changed.current), len(changed.current.rows))
                elif self.form.remove is not None:
                    yield Piece(self.form.remove(changed.key), 0)
                else:
                    removed.append(changed.key)

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


def export_run(runner: Runner, storage: Storage, export: Export) -> dict[str, object]:
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
    runner.describe(f"export: {export.format} of run {export.run_id}")
    as_stored = export.since is None and export.pairs is None and form.by == "query_id"
    as_stored = as_stored and not form.needs_query_text and not form.needs_first_stage_score
    files = run_files(storage, export.output, export.run_id)
    reports = (_from_files if as_stored else _from_exchange)(runner, files, export, task)
    return finish(storage, export, task.made_from, reports.to_pylist())


def _from_files(runner: Runner, files: Sequence[str], export: Export, task: _Task) -> pa.Table:
    """Each file of ranked/ by a task of its own, as it is stored: nothing is exchanged."""

    def work(number: int) -> Iterator[pa.RecordBatch]:
        batches = ranked_batches(task.storage, files[number], export.depth)
        yield from task.write(number, (row for batch in batches for row in batch.to_pylist()))

    return gather(runner, range(len(files)), work, _REPORT)


@dataclass(frozen=True, slots=True)
class _Parts:
    """Which of `count` parts a row is in: that of its query in the run's files, or of a hash of its document."""

    by: str
    count: int
    records: Mapping[int, pa.Schema]
    first_ids: tuple[str, ...] = ()

    def pack(self, kind: int, rows: pa.Table) -> Iterator[pa.RecordBatch]:
        """Rows of a record type as BATCHES."""
        ids = rows[self.by].combine_chunks()
        parts = files_of(ids, self.first_ids) if self.by == "query_id" else key_hash(ids) % np.uint64(self.count)
        yield from pack(kind, parts, rows.cast(self.records[kind]))


def _from_exchange(runner: Runner, files: Sequence[str], export: Export, task: _Task) -> pa.Table:
    """Lists of two runs, by document, or with columns of other tables, put together: keys and texts of queries move."""
    storage, form = task.storage, export.form
    records = _GROUP_RECORDS if form.by == "group_id" else _RECORDS
    if form.by != "query_id":
        # Parts depend on the run alone: so many rows each, cut by a hash.
        row_count = sum(fragment.rows for file in files for fragment in fragments(storage, file, RANKED))
        cut, first = _Parts(form.by, max(1, -(-row_count // export.limits.rows)), records), None
    else:
        # … or those of the newer run's files.
        queries, first = _first_queries(runner, storage, files)
        cut = _Parts("query_id", max(1, len(files)), records, tuple(queries[1:]))
    order = ("query_id", "is_old", "rank") if form.by == "query_id" else (form.by, "is_old", "query_id", "rank")

    def work(number: int, tables: dict[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        rows = _joined(tables, form).sort_by([(name, "ascending") for name in order])
        batches = (_best(rows) if form.by == "group_id" else rows).to_batches(_BATCH_ROWS)
        yield from task.write(number, (row for b in batches for row in b.to_pylist()), first[number] if first else 1)

    rows = _sources(runner, storage, export, files, cut)
    return runner.collect(runner.exchange(rows, cut.count, cut.records, work, _REPORT), _REPORT)


def _sources(runner: Runner, storage: Storage, export: Export, files: Sequence[str], cut: _Parts) -> list[Rows]:
    """Rows of the run and of the older one, and what else the format needs, as BATCHES."""

    def ranked(kind: int) -> Work[str]:
        def read(file: str) -> Iterator[pa.RecordBatch]:
            for batch in ranked_batches(storage, file, export.depth, cut.records[kind]):
                rows = pa.Table.from_batches([batch])
                if cut.by == "group_id":
                    rows = rows.set_column(len(RANKED), "group_id", pc.coalesce(batch["group_id"], batch["doc_id"]))
                yield from cut.pack(kind, rows)

        return read

    def texts(file: TableFile) -> Iterator[pa.RecordBatch]:
        for *_, batch in read_table_file(storage, file, QUERIES, ["query_id", "text"]):
            decoded = [_text(raw) for raw in batch["text"].to_pylist()]
            arrays = [batch["query_id"], pa.array(decoded, pa.string())]
            yield from cut.pack(TEXT, pa.Table.from_arrays(arrays, schema=_RECORDS[TEXT]))

    def scores(chunk: Chunk) -> Iterator[pa.RecordBatch]:
        for *_, batch in chunk.read(storage, CANDIDATES, _RECORDS[SCORE].names):
            yield from cut.pack(SCORE, pa.Table.from_batches([batch]))

    tasks = 4 * runner.parallelism
    if export.pairs is None:
        rows = [runner.scatter(files, ranked(NEW), BATCHES, tasks)]
    else:
        sample = _sample(runner, storage, export, files, export.pairs)
        rows = [runner.scatter([sample], lambda chosen: cut.pack(NEW, chosen), BATCHES)]
    if export.since is not None:
        rows.append(runner.scatter(run_files(storage, export.output, export.since), ranked(OLD), BATCHES, tasks))
    if export.form.needs_query_text:
        tables = [fragment.file for fragment in fragments(storage, export.queries, QUERIES)]
        rows.append(runner.scatter(tables, texts, BATCHES, tasks))
    if export.form.needs_first_stage_score:
        chunks = table_chunks(fragments(storage, export.candidates, CANDIDATES))
        rows.append(runner.scatter(chunks, scores, BATCHES, tasks))
    return rows


def _joined(tables: Mapping[int, pa.Table], form: Format) -> pa.Table:
    """A part's rows of both runs. Columns: RANKED, is_old, and what the format needs."""
    sides = [
        tables[kind].append_column("is_old", pa.array(np.full(tables[kind].num_rows, kind == OLD)))
        for kind in (NEW, OLD)
    ]
    rows = pa.concat_tables(sides).combine_chunks()
    if form.needs_query_text:
        texts = tables[TEXT].drop_null().sort_by("query_text")  # of several texts one, always the same
        at = pc.index_in(rows["query_id"], value_set=texts["query_id"].combine_chunks())
        rows = rows.append_column("query_text", texts["query_text"].take(at))
    if form.needs_first_stage_score:
        scores = tables[SCORE].group_by(["query_id", "doc_id"]).aggregate([("first_stage_score", "max")])
        scores = scores.rename_columns({"first_stage_score_max": "first_stage_score"})
        rows = rows.join(scores, ["query_id", "doc_id"], join_type="left outer")
    return rows


def _best(rows: pa.Table) -> pa.Table:
    """Of rows sorted by group, run, query and rank the first of each query, in each run."""
    first = np.zeros(rows.num_rows, bool)
    for name in ("group_id", "is_old", "query_id"):
        first |= np.diff(rows[name].combine_chunks().dictionary_encode().indices.to_numpy(), prepend=-1) != 0
    return rows.filter(pa.array(first))


def _sample(runner: Runner, storage: Storage, export: Export, files: Sequence[str], pairs: int) -> pa.Table:
    """So many pairs by a hash of their ids: the same each time, spread over the whole run."""
    columns = pa.schema([*RANKED, ("hash", pa.uint64())])
    order = [(name, "ascending") for name in ("hash", "query_id", "doc_id")]

    def choose(file: str) -> Iterator[pa.RecordBatch]:
        chosen = columns.empty_table()
        for batch in ranked_batches(storage, file, export.depth):
            by_query, by_document = (key_hash(batch[name]) for name in ("query_id", "doc_id"))
            hashes = pa.array(splitmix64(by_query ^ splitmix64(by_document)))
            rows = pa.Table.from_batches([batch]).append_column("hash", hashes).cast(columns)
            chosen = pa.concat_tables([chosen, rows]).sort_by(order).slice(0, pairs).combine_chunks()
        yield from chosen.to_batches()

    chosen = gather(runner, files, choose, columns, 4 * runner.parallelism)
    return chosen.sort_by(order).slice(0, pairs).select(RANKED.names)


def _first_queries(runner: Runner, storage: Storage, files: Sequence[str]) -> tuple[list[str], list[int]]:
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

    rows = gather(runner, range(len(files)), count, _COUNTS).sort_by("file")
    return rows["first"].to_pylist(), [*accumulate(rows["queries"].to_pylist(), initial=1)]


def _text(raw: bytes | None) -> str | None:
    try:
        return decode_text(raw) or None
    except UnicodeDecodeError:
        return None
