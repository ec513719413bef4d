"""Lookup, split and cut: pairs that have a stored score are set apart, the new ones become work units of even cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lakerank.lake.scores import UNITS, write_unit_list
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import parquet_bytes
from lakerank.plan.index import QueryList
from lakerank.plan.lookup import (
    CONTENT_SCORES,
    DOCUMENT_CONTENTS,
    ScoreIndexer,
    ScoreLookup,
    document_contents,
    match_contents,
)
from lakerank.plan.pairs import PAIRS, key_hash, part_of
from lakerank.plan.partitions import DOCUMENT_PAIRS, PAIR, SCORE, SPLIT_RECORDS, Partitions, Splitter
from lakerank.plan.plan import read_part, write_part
from lakerank.plan.units import Cuts, GroupFiles, unit_name, unit_rows
from lakerank.runner import BATCHES, COUNTS, Counts, Rows, Runner, gather, pack, totals

#: Record types of the lookup.
_SCORE, _DOCUMENT = 0, 1
_LOOKUP_RECORDS = {_SCORE: CONTENT_SCORES, _DOCUMENT: DOCUMENT_CONTENTS}

_FILE = pa.schema([("file", pa.string())])
_REPORT = pa.schema([("task", pa.int64()), ("units", pa.int64()), ("largest", pa.int64())])


def score_lookup(runner: Runner, indexer: ScoreIndexer) -> ScoreLookup:
    """A scorer's stored scores; missing index files are written first. Corrupt unit files do not count."""
    lookup, missing = indexer.missing()
    if not missing:
        return lookup

    def write(units: Sequence[str]) -> Iterator[pa.RecordBatch]:
        yield pa.RecordBatch.from_pydict({"file": [indexer.write(units)]}, schema=_FILE)

    runner.describe(f"plan: index the scores of {sum(map(len, missing))} units")
    written = gather(runner, missing, write, _FILE)["file"].drop_null().to_pylist()
    return replace(lookup, names=tuple(sorted({*lookup.names, *written})))


def score_records(runner: Runner, scores: ScoreLookup, splitter: Splitter, partitions: Partitions, bits: int) -> Rows:
    """Stored scores as SCORE records, packed for the partitions of the documents that have their content now.

    Scores and documents meet by content, in 2^bits parts.
    """
    documents, queries = splitter.documents, splitter.queries

    def pack_by_content(record_type: int, rows: pa.Table) -> Iterator[pa.RecordBatch]:
        coded = rows["doc_hash"].combine_chunks().dictionary_encode()
        parts = part_of(key_hash(coded.dictionary), bits)[coded.indices.to_numpy()]
        yield from sort_and_pack(record_type, parts, rows.combine_chunks())

    def read_scores(name: str) -> Iterator[pa.RecordBatch]:
        yield from pack_by_content(_SCORE, scores.read(name, queries))

    def read_documents(chunk: int) -> Iterator[pa.RecordBatch]:
        yield from pack_by_content(_DOCUMENT, document_contents(documents, chunk))

    def match(_: int, tables: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        matches = match_contents(tables[_SCORE], tables[_DOCUMENT])
        yield from sort_and_pack(SCORE, partitions.of(matches["document"].to_numpy()), matches)

    records = [
        runner.scatter(scores.names, read_scores, BATCHES, tasks=8 * runner.parallelism),
        runner.scatter(range(len(documents.chunks)), read_documents, BATCHES, documents.tasks(runner.parallelism)),
    ]
    return runner.exchange(records, 2**bits, _LOOKUP_RECORDS, match, BATCHES)


def sort_and_pack(record_type: int, parts: npt.NDArray[np.integer], rows: pa.Table) -> Iterator[pa.RecordBatch]:
    """Rows (N,) in any order, packed for their parts (N,)."""
    order = np.argsort(parts, kind="stable")
    yield from pack(record_type, parts[order], rows.take(pa.array(order)))


def pair_records(runner: Runner, storage: Storage, folder: str, partitions: Partitions) -> Rows:
    """The pairs of a plan folder's `pairs/` as PAIR records, packed for partitions."""
    pairs = join(folder, "pairs")

    def read(name: str) -> Iterator[pa.RecordBatch]:
        rows = read_part(storage, join(pairs, name), PAIRS).drop_columns(["doc_id"])  # in the order of documents
        yield from pack(PAIR, partitions.of(rows["document"].to_numpy()), rows.cast(DOCUMENT_PAIRS))

    return runner.scatter(storage.list_names(pairs), read, BATCHES)


def split_pairs(runner: Runner, splitter: Splitter, folder: str, records: Sequence[Rows], partitions: int) -> Counts:
    """Split PAIR and SCORE records: new pairs go to `groups/`, scored ones to `reused/`, a file a partition.

    Returns:
        Totals, the `cost` of each partition's groups, and (under "unit …") the units whose scores are reused.
    """

    storage = splitter.documents.storage

    def split(number: int, tables: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        groups, reused, counts = splitter.split(tables[PAIR], tables[SCORE])
        for name, table in (("groups", groups), ("reused", reused)):
            if table.num_rows:
                write_part(storage, join(folder, name), number, table)
        yield totals(counts)
        yield totals({"cost": pc.sum(groups["cost"], min_count=0).as_py()}, number)
        yield totals({f"unit {unit}": 1 for unit in pc.unique(reused["unit"]).to_pylist()})

    return runner.summed(runner.exchange(records, partitions, SPLIT_RECORDS, split, COUNTS))


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
        yield pa.RecordBatch.from_pydict({"task": [task], "units": [len(units)], "largest": [largest]}, schema=_REPORT)

    runner.describe(f"plan: cut {cuts.units} units")
    report = gather(runner, range(tasks), cut, _REPORT).sort_by("task")
    return tuple(report["units"].to_pylist()), max(report["largest"].to_pylist(), default=0)
