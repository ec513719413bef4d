"""The steps of a plan, distributed: index, number, join; lookup, split and cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lakerank.cost import Sizing
from lakerank.duplicates.clusters import Clusters
from lakerank.lake.runs import RunPaths
from lakerank.lake.scores import UNITS, write_unit_list
from lakerank.lake.states import STATE_REFS, state_refs
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import Fragment, index_places, parquet_bytes
from lakerank.plan.index import (
    Chunk,
    QueryList,
    TableIndex,
    TableName,
    shared_chunks,
    table_chunks,
    write_index_file,
    write_query_list,
)
from lakerank.plan.lookup import (
    CONTENT_SCORES,
    DOCUMENT_CONTENTS,
    DOCUMENT_SCORES,
    DOCUMENT_STATES,
    PreviousCandidates,
    ScoreIndex,
    match_contents,
)
from lakerank.plan.pairs import (
    CANDIDATE,
    CONTENT,
    DOCUMENT,
    JOIN_RECORDS,
    PAIRS,
    REPEATED,
    UNMATCHED_CANDIDATE,
    flat,
    grouped_candidates,
    hash_parts,
    high_bits,
    located_documents,
    repeated_contents,
    scorable_contents,
    validate_pairs,
)
from lakerank.plan.partitions import (
    PAIR,
    SCORE,
    SPLIT_RECORDS,
    STATE,
    DocumentRanges,
    Partitions,
    Splitter,
)
from lakerank.plan.plan import BATCH_ROWS, read_part, with_columns, write_part
from lakerank.plan.units import Cuts, GroupFiles, unit_name, unit_rows
from lakerank.rerank.attempts import attempt
from lakerank.runner import BATCHES, COUNTS, Counts, Rows, Runner, gather, histogram, one_row, pack, total_of, totals
from lakerank.schemas import CANDIDATES

_ROWS = pa.schema([("rows", pa.int64())])
_LISTED = pa.schema([*_ROWS, ("instructed", pa.int64())])
_KEYS = ("query_id", "doc_id", "first_stage_rank")
#: Record types of the lookup.
_CONTENT_SCORE, _CONTENT, _CONTENT_STATE = 0, 1, 2
_DOCUMENTS = pa.schema([PAIRS.field(name) for name in ("hash", "document")])
_LOOKUP_RECORDS = {_CONTENT_SCORE: CONTENT_SCORES, _CONTENT: DOCUMENT_CONTENTS, _CONTENT_STATE: STATE_REFS}
#: Where a task of the join leaves the repeated contents that it finds, for the parts of their documents.
_BY_CONTENT = "repeated_contents"

_FILE = pa.schema([("file", pa.string())])
_REPORT = pa.schema([("task", pa.int64()), ("units", pa.int64()), ("largest", pa.int64())])


def table_index(
    runner: Runner, storage: Storage, paths: RunPaths, table: TableName, files: Sequence[Fragment], sizing: Sizing
) -> TableIndex:
    """The index of a table; missing index files are written first. An image that kills who sketches it twice is not
    sketched."""
    folder, tasks = join(paths.output, "index", table), 4 * runner.parallelism
    chunks, places = table_chunks(files), index_places(storage, folder)
    missing = [chunk for chunk in chunks if chunk.index_name not in places]

    def write(share: Sequence[Chunk]) -> Iterator[pa.RecordBatch]:
        decodes = table == "sketches"
        with attempt(storage, paths.plan, share[0].index_name) if decodes else nullcontext():
            rows = write_index_file(storage, folder, table, share)
        yield one_row(_ROWS, rows)

    if missing:
        runner.describe(f"plan: index {table}, {len(missing)} of {len(chunks)} chunks")
        shares = shared_chunks(missing, -(-len(missing) // tasks))
        gather(runner, shares, write, _ROWS, tasks=max(tasks, len(shares) // 8))
        places = index_places(storage, folder)
    return TableIndex(storage, folder, chunks, places, sizing)


def number_queries(runner: Runner, index: TableIndex, folder: str) -> tuple[QueryList, int]:
    """Sort and number an index's queries in one task, which holds some ten million; and rows with an instruction."""

    def write(_: int) -> Iterator[pa.RecordBatch]:
        yield one_row(_LISTED, *write_query_list(index, folder))

    runner.describe("plan: sort and number the queries")
    counts = gather(runner, [0], write, _LISTED)
    return QueryList(index.storage, folder, counts["rows"][0].as_py()), counts["instructed"][0].as_py()


@dataclass(frozen=True, slots=True)
class Join:
    """Validates candidates by document id in 2^bits parts: pairs to score go to `pairs/`, the others to `rejects/`.

    Documents of the table whose content an earlier one has go to `repeated/`, which lakes without any have none of.
    Pairs are counted by document range and by buckets of `bucket_rows` neighbouring queries. Of the last published
    run's candidates (`previous`), those that are still listed are counted.
    """

    storage: Storage
    folder: str
    queries: QueryList
    ranges: DocumentRanges
    bits: int
    bucket_rows: int
    previous: PreviousCandidates | None
    sharing: Clusters | None

    def run(self, runner: Runner, candidates: Sequence[Fragment], documents: TableIndex) -> Counts:
        """Validate all candidates.

        Returns:
            Totals, and numbers of pairs by document `range` and by `bucket` of queries.
        """

        def read_candidates(chunk: Chunk) -> Iterator[pa.RecordBatch]:
            batches = (batch for *_, batch in chunk.read(self.storage, CANDIDATES, _KEYS))
            for rows in concatenated(batches, BATCH_ROWS):
                listed, unmatched = grouped_candidates(rows, self.queries)
                yield from pack(CANDIDATE, hash_parts(listed["doc_id"], self.bits), listed)
                yield from pack(UNMATCHED_CANDIDATE, hash_parts(unmatched["doc_id"], self.bits), unmatched)

        def read_documents(chunks: Sequence[int]) -> Iterator[pa.RecordBatch]:
            for located in located_documents(documents, chunks):
                parts = hash_parts(located["doc_id"], self.bits)
                yield from pack(DOCUMENT, parts, located)
                contents = scorable_contents(located, content_keys(located["hash"], self.sharing), parts)
                yield from pack(CONTENT, high_bits(contents["high"].to_numpy(), self.bits), contents)

        rows = sum(file.rows for file in candidates)
        runner.describe(f"plan: join {rows} candidates with documents and queries")
        chunks = table_chunks(candidates, max(1, min(BATCH_ROWS, -(-rows // (2 * runner.parallelism)))))
        records = [
            runner.scatter(chunks, read_candidates, BATCHES, max(4 * runner.parallelism, rows // BATCH_ROWS)),
            runner.scatter(documents.by_file(), read_documents, BATCHES, documents.tasks(runner.parallelism)),
        ]
        joined = runner.summed(runner.exchange(records, 2**self.bits, JOIN_RECORDS, self._validate, COUNTS))
        if total_of(joined, "repeated"):
            self._spread_repeated(runner)
        return joined

    def _validate(self, part: int, records: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        validated = validate_pairs(records, self.queries)
        rows, numbers, _ = flat(validated.pairs)
        for name, table in (("pairs", validated.pairs), ("rejects", validated.rejects)):
            if table.num_rows:
                write_part(self.storage, join(self.folder, name), part, table)
        repeated = repeated_contents(records[CONTENT])
        if repeated.num_rows:
            write_part(self.storage, join(self.folder, _BY_CONTENT), part, repeated)
        retained = self.previous.retained(part, self.bits, validated, self.queries) if self.previous else 0
        rejected, duplicates, documents = validated.rejects.num_rows, validated.duplicates, validated.documents
        yield totals({"candidates": len(rows) + rejected, "rejected": rejected, "duplicates": duplicates})
        yield totals({"documents": documents, "retained": retained, "repeated": repeated.num_rows})
        yield histogram("range", self.ranges.of(validated.pairs["document"].to_numpy()[rows]))
        yield histogram("bucket", numbers // self.bucket_rows)

    def _spread_repeated(self, runner: Runner) -> None:
        """Write `repeated/`."""
        folder = join(self.folder, _BY_CONTENT)

        def read(name: str) -> Iterator[pa.RecordBatch]:
            rows = read_part(self.storage, join(folder, name), REPEATED)
            yield from pack(CONTENT, rows["part"].to_numpy(), rows)

        def write(part: int, records: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
            write_part(self.storage, join(self.folder, "repeated"), part, records[CONTENT])
            yield totals({})

        rows = runner.scatter(self.storage.list_names(folder), read, BATCHES)
        runner.summed(runner.exchange([rows], 2**self.bits, {CONTENT: REPEATED}, write, COUNTS))


def concatenated(batches: Iterator[pa.RecordBatch], batch_rows: int) -> Iterator[pa.Table]:
    """Batches put together to `batch_rows` rows or a little more."""
    buffered: list[pa.RecordBatch] = []
    for batch in batches:
        buffered.append(batch)
        if sum(rows.num_rows for rows in buffered) >= batch_rows:
            yield pa.Table.from_batches(buffered).combine_chunks()
            buffered = []
    if buffered:
        yield pa.Table.from_batches(buffered).combine_chunks()


def score_index(runner: Runner, index: ScoreIndex) -> ScoreIndex:
    """A scorer's stored scores; missing index files are written first. Corrupt unit files do not count."""
    index, missing = index.listed()
    if not missing:
        return index

    def write(units: Sequence[str]) -> Iterator[pa.RecordBatch]:
        yield one_row(_FILE, index.write(units))

    runner.describe(f"plan: index the scores of {sum(map(len, missing))} units")
    written = gather(runner, missing, write, _FILE)["file"].drop_null().to_pylist()
    return replace(index, names=tuple(sorted({*index.names, *written})))


@dataclass(frozen=True, slots=True)
class PairFiles:
    """The `pairs/` of a plan folder, and what the first stage's plan folder says of contents that documents repeat.

    Both are in 2^bits parts by document id. Where near duplicates share a score, their cluster is their content.
    """

    storage: Storage
    folder: str
    first_folder: str
    bits: int = 0
    sharing: Clusters | None = None

    @property
    def names(self) -> list[str]:
        """Names of the files of pairs."""
        return self.storage.list_names(join(self.folder, "pairs"))

    def contents(self, runner: Runner) -> Rows:
        """The contents of the pairs as _CONTENT records, packed by content."""

        def read(name: str) -> Iterator[pa.RecordBatch]:
            rows = read_part(self.storage, join(self.folder, "pairs", name), _DOCUMENTS)
            columns = [content_keys(rows["hash"], self.sharing), self._first(name, rows["document"])]
            contents = pa.Table.from_arrays(columns, schema=DOCUMENT_CONTENTS)
            yield from pack(_CONTENT, hash_parts(contents["doc_hash"], self.bits), contents)

        return runner.scatter(self.names, read, BATCHES)

    def pairs(self, name: str) -> pa.Table:
        """The pairs of a file as the split has them."""
        rows = read_part(self.storage, join(self.folder, "pairs", name), PAIRS)
        first = self._first(name, rows["document"])
        own = pc.equal(first, rows["document"]).to_numpy()
        later = pa.array(np.arange(len(own)), mask=own)  # a null takes no bytes along
        named = {name: rows[name].take(later) for name in ("doc_id", "hash")}
        return with_columns(rows, PAIRS, document=first, **named)

    def _first(self, name: str, documents: pa.ChunkedArray) -> pa.ChunkedArray:
        """The first document with the content of each (D,) of a file."""
        address = join(self.first_folder, "repeated", name)
        if not self.storage.exists(address):
            return documents
        repeated = read_part(self.storage, address, REPEATED)
        at = pc.index_in(documents, value_set=repeated["document"].combine_chunks())
        return pc.coalesce(repeated["first"].combine_chunks().take(at), documents)


def content_keys(hashes: pa.ChunkedArray, sharing: Clusters | None) -> pa.ChunkedArray:
    """What contents (N,) are told apart by."""
    return hashes if sharing is None else pa.chunked_array([sharing.of(hashes)])


def kept_records(
    runner: Runner,
    scores: ScoreIndex,
    states: Sequence[str],
    queries: QueryList,
    files: PairFiles,
    partitions: Partitions,
) -> Rows:
    """Stored scores as SCORE records, and states of documents in files (STATES) as STATE records.

    They are packed for the partitions of the first documents that have their content now.
    """
    bits = files.bits

    def read_scores(name: str) -> Iterator[pa.RecordBatch]:
        rows = scores.read(name, queries)
        rows = rows.set_column(0, "doc_hash", content_keys(rows["doc_hash"], files.sharing))
        yield from pack(_CONTENT_SCORE, hash_parts(rows["doc_hash"], bits), rows)

    def read_states(uri: str) -> Iterator[pa.RecordBatch]:
        for rows in state_refs(scores.storage, uri):
            yield from pack(_CONTENT_STATE, hash_parts(rows["doc_hash"], bits), rows)

    def match(_: int, tables: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        for kind, kept, schema in ((SCORE, _CONTENT_SCORE, DOCUMENT_SCORES), (STATE, _CONTENT_STATE, DOCUMENT_STATES)):
            matches = match_contents(tables[kept], tables[_CONTENT], schema)
            yield from pack(kind, partitions.of(matches["document"].to_numpy()), matches)

    records = [
        runner.scatter(scores.names, read_scores, BATCHES, tasks=8 * runner.parallelism),
        runner.scatter(states, read_states, BATCHES, tasks=8 * runner.parallelism),
        files.contents(runner),
    ]
    return runner.exchange(records, 2**bits, _LOOKUP_RECORDS, match, BATCHES)


def pair_records(runner: Runner, files: PairFiles, partitions: Partitions) -> Rows:
    """Pairs as PAIR records, packed for the partitions of the first documents of their contents."""

    def read(name: str) -> Iterator[pa.RecordBatch]:
        rows = files.pairs(name)
        yield from pack(PAIR, partitions.of(rows["document"].to_numpy()), rows)

    return runner.scatter(files.names, read, BATCHES)


def split_pairs(runner: Runner, splitter: Splitter, folder: str, records: Sequence[Rows], partitions: int) -> Counts:
    """Split PAIR and SCORE records: new pairs go to `groups/`, scored ones to `reused/`, a file a partition.

    Returns:
        Totals, the `cost` of each partition's groups, and (under "unit …") the units whose scores are reused.
    """

    storage = splitter.documents.storage

    def split(number: int, tables: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        split = splitter.split(tables[PAIR], tables[SCORE], tables[STATE])
        yield from write_split(storage, folder, number, *split)

    return runner.summed(runner.exchange(records, partitions, SPLIT_RECORDS, split, COUNTS))


def write_split(
    storage: Storage, folder: str, number: int, groups: pa.Table, reused: pa.Table, counts: Mapping[str, int]
) -> Iterator[pa.RecordBatch]:
    """Write a partition's GROUPS and REUSED; its counts as `split_pairs` returns them."""
    for name, table in (("groups", groups), ("reused", reused)):
        if table.num_rows:
            write_part(storage, join(folder, name), number, table)
    yield totals(counts)
    yield totals({"cost": pc.sum(groups["cost"], min_count=0).as_py()}, number)
    yield totals({f"unit {unit}": 1 for unit in pc.unique(reused["unit"]).to_pylist()})


def write_units(
    runner: Runner, groups: GroupFiles, queries: QueryList, unit_tokens: int
) -> tuple[tuple[int, ...], int]:
    """Cut groups into units of about `unit_tokens`: a file each in `units/`, and lists of them in `unit_lists/`.

    Returns:
        How many units each list names, in file order, and the cost of the largest.
    """
    total = sum(groups.costs.values())
    cuts = Cuts.near(total, max(1, min(unit_tokens, total // (2 * runner.parallelism))))
    tasks = min(cuts.units, max(4 * runner.parallelism, cuts.units // 64)) if total else 0
    shares = [(task * cuts.units // tasks, (task + 1) * cuts.units // tasks) for task in range(tasks)]
    storage, folder = groups.storage, groups.folder

    def cut(task: int) -> Iterator[pa.RecordBatch]:
        units = []
        for unit in groups.units(cuts, *shares[task]):
            rows = unit_rows(unit, queries)
            name = unit_name(rows)
            storage.replace(join(folder, "units", f"{name}.parquet"), parquet_bytes(rows, max(1, rows.num_rows)))
            pairs = pc.sum(pc.list_value_length(rows["queries"])).as_py()
            units.append({"unit": name, "groups": rows.num_rows, "pairs": pairs, "cost": pc.sum(unit["cost"]).as_py()})
        table = pa.Table.from_pylist(units, schema=UNITS)
        write_unit_list(storage, folder, task, table)
        largest = pc.max(table["cost"]).as_py() or 0
        yield one_row(_REPORT, task, len(units), largest)

    runner.describe(f"plan: cut {cuts.units} units")
    report = gather(runner, range(tasks), cut, _REPORT).sort_by("task")
    return tuple(report["units"].to_pylist()), max(report["largest"].to_pylist(), default=0)
