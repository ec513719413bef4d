"""Judged queries in blocks: rows of every table brought together by query, in this process or in Spark's tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lakerank.lake.snapshot import TableFile
from lakerank.lake.storage import Storage
from lakerank.plan.pairs import key_hash
from lakerank.runner import BATCHES, Rows, Runner, gather, one_row, pack
from lakerank_evaluation.inputs import Inputs, row_groups
from lakerank_evaluation.pairs import PAIR_COLUMNS, InputTable, joined
from lakerank_evaluation.rows import MODALITIES, document_modalities, known_modality, query_rows, table_rows

#: Rows of a block, about: memory beyond the figures does not grow with the number of queries.
BLOCK_ROWS = 250_000

#: Where there are no more judgements, lists of unjudged queries are not brought together with the others.
_FEW_JUDGEMENTS = 500_000

#: The kind of the documents' rows, beside those of the input tables.
_DOCUMENTS = len(InputTable)

_BLOCKS = pa.schema([("queries", pa.binary()), ("pairs", pa.binary()), ("unjudged", pa.int64())])
_QUERY_IDS = pa.schema([("query_id", pa.string())])
_MODALITY = pa.schema([("modality", pa.int8())])


class Block(NamedTuple):
    """The judged queries among some whole ones, their pairs (see `joined`), and the number of unjudged queries."""

    queries: pa.Table
    pairs: pa.Table
    unjudged: int


@dataclass(frozen=True, slots=True)
class _Task:
    """What every task needs. `judged`: ids of the judged queries, if they are few."""

    storage: Storage
    labels: tuple[str, ...]
    judged: pa.Array | None
    parts: int

    @property
    def kinds(self) -> dict[int, pa.Schema]:
        """Schemas of the rows that tasks hand to each other."""
        columns = [("query_id", pa.string()), ("modality", pa.int8()), *((name, pa.string()) for name in self.labels)]
        candidates = PAIR_COLUMNS[InputTable.CANDIDATE].append(MODALITIES.field("modality"))
        kinds = {InputTable.QUERY: pa.schema(columns), InputTable.CANDIDATE: candidates, _DOCUMENTS: MODALITIES}
        return {**PAIR_COLUMNS, **kinds}

    def read(self, table: InputTable, group: tuple[TableFile, int]) -> pa.Table:
        """A row group; of lists the rows of judged queries, if they are few."""
        if table == InputTable.QUERY:
            return pa.Table.from_batches(query_rows(self.storage, *group, self.labels), self.kinds[table])
        rows = pa.Table.from_batches(table_rows(self.storage, table, *group), PAIR_COLUMNS[table])
        if table == InputTable.QREL or self.judged is None:
            return rows
        return rows.filter(pc.is_in(rows["query_id"], value_set=self.judged))

    def packed(self, kind: int, key: str, rows: pa.Table) -> Iterator[pa.RecordBatch]:
        """Rows by a hash of their key, so that equal keys meet."""
        yield from pack(kind, key_hash(rows[key].combine_chunks()) % np.uint64(self.parts), rows)


def read_blocks(runner: Runner, storage: Storage, inputs: Inputs, block_rows: int = BLOCK_ROWS) -> Iterator[Block]:
    """Blocks of about so many rows; those of a few tasks are here at a time."""
    judged, parts = _judged_ids(runner, storage, inputs), max(1, -(-inputs.rows // block_rows))
    task = _Task(storage, inputs.labels, judged, parts)

    def scatter(table: InputTable) -> Rows:
        return runner.scatter(
            inputs.row_groups(table),
            lambda group: task.packed(table, "query_id", task.read(table, group)),
            BATCHES,
            4 * runner.parallelism,
        )

    def block(part: int, tables: dict[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        queries, pairs, unjudged = block_of(tables)
        yield one_row(_BLOCKS, _stream(queries), _stream(pairs), unjudged)

    rows = [scatter(table) for table in inputs.files if table != InputTable.CANDIDATE]
    rows.append(_candidates(runner, inputs, task))
    runner.describe("evaluate: the judged queries")
    for packed in runner.stream(runner.exchange(rows, task.parts, task.kinds, block, _BLOCKS)):
        queries, pairs = (pa.ipc.open_stream(packed[name]).read_all() for name in ("queries", "pairs"))
        yield Block(queries, pairs, packed["unjudged"])


def block_of(tables: Mapping[int, pa.Table]) -> Block:
    """The block of all rows of some queries."""
    judged = pc.unique(tables[InputTable.QREL]["query_id"])

    def of_judged(rows: pa.Table) -> pa.Table:
        return rows.filter(pc.is_in(rows["query_id"], value_set=judged))

    queries = tables[InputTable.QUERY]
    known = of_judged(queries)
    unjudged = pc.count_distinct(queries["query_id"]).as_py() - pc.count_distinct(known["query_id"]).as_py()
    return Block(known, joined({table: of_judged(tables[table]) for table in PAIR_COLUMNS}), unjudged)


def _stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _judged_ids(runner: Runner, storage: Storage, inputs: Inputs) -> pa.Array | None:
    if sum(fragment.rows for fragment in inputs.files[InputTable.QREL]) > _FEW_JUDGEMENTS:
        return None

    def read(group: tuple[TableFile, int]) -> Iterator[pa.RecordBatch]:
        for batch in table_rows(storage, InputTable.QREL, *group):
            yield pa.RecordBatch.from_arrays([batch["query_id"].unique()], schema=_QUERY_IDS)

    groups = inputs.row_groups(InputTable.QREL)
    return pc.unique(gather(runner, groups, read, _QUERY_IDS, 4 * runner.parallelism)["query_id"])


def _candidates(runner: Runner, inputs: Inputs, task: _Task) -> Rows:
    """Candidates with the modality of their documents; most lakes have one modality, which the footers tell."""
    groups, documents = inputs.row_groups(InputTable.CANDIDATE), row_groups(inputs.documents)
    tasks = 4 * runner.parallelism

    def footer(group: tuple[TableFile, int]) -> Iterator[pa.RecordBatch]:
        yield one_row(_MODALITY, known_modality(task.storage, *group))

    def of_one_modality(group: tuple[TableFile, int]) -> Iterator[pa.RecordBatch]:
        rows = task.read(InputTable.CANDIDATE, group)
        yield from task.packed(InputTable.CANDIDATE, "query_id", _with_modality(rows, [modality] * len(rows)))

    def by_document(group: tuple[TableFile, int]) -> Iterator[pa.RecordBatch]:
        rows = task.read(InputTable.CANDIDATE, group)
        yield from task.packed(InputTable.CANDIDATE, "doc_id", _with_modality(rows, [None] * len(rows)))

    def read_documents(group: tuple[TableFile, int]) -> Iterator[pa.RecordBatch]:
        rows = pa.Table.from_batches(document_modalities(task.storage, *group), MODALITIES)
        yield from task.packed(_DOCUMENTS, "doc_id", rows)

    def join(part: int, tables: dict[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        known = tables[_DOCUMENTS].group_by("doc_id").aggregate([("modality", "max")]).combine_chunks()
        rows = tables[InputTable.CANDIDATE].drop_columns("modality")
        at = pc.index_in(rows["doc_id"], value_set=known["doc_id"].combine_chunks())
        rows = _with_modality(rows, known["modality_max"].take(at))
        yield from task.packed(InputTable.CANDIDATE, "query_id", rows)

    runner.describe("evaluate: modalities of the documents")
    modality, *others = pc.unique(gather(runner, documents, footer, _MODALITY, tasks)["modality"]).to_pylist() or [None]
    if modality is not None and not others:
        return runner.scatter(groups, of_one_modality, BATCHES, tasks)
    rows = [runner.scatter(groups, by_document, BATCHES, tasks)]
    rows.append(runner.scatter(documents, read_documents, BATCHES, tasks))
    return runner.exchange(rows, task.parts, task.kinds, join, BATCHES)


def _with_modality(rows: pa.Table, modality: Sequence[int | None] | pa.ChunkedArray) -> pa.Table:
    column = modality if isinstance(modality, pa.ChunkedArray) else pa.array(modality, pa.int8())
    return rows.append_column(MODALITIES.field("modality"), column)
