"""Judged queries in blocks: rows of every table brought together by query, in this process or in Spark's tasks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lakerank.evaluation.inputs import Inputs, row_groups
from lakerank.evaluation.pairs import ROWS, InputTable
from lakerank.evaluation.rows import MODALITIES, document_modalities, known_modality, query_rows, table_rows
from lakerank.lake.formats.snapshot import TableFile
from lakerank.lake.storage import Storage
from lakerank.plan.pairs import key_hash
from lakerank.runner import BATCHES, Rows, Runner, gather, one_row, pack

#: Rows of a block, about: memory beyond the figures does not grow with the number of queries.
BLOCK_ROWS = 250_000

#: Where there are no more judgements, lists of unjudged queries are not brought together with the others.
_FEW_JUDGEMENTS = 500_000

#: (rows of whole judged queries, sorted by query and document; unjudged queries left out of it).
Block = tuple[pa.Table, int]

_BLOCKS = pa.schema([("rows", pa.binary()), ("unjudged", pa.int64())])
_QUERY_IDS = pa.schema([("query_id", pa.string())])
_MODALITY = pa.schema([("modality", pa.int8())])

#: Kinds of rows that tasks hand to each other.
_ROWS, _DOCUMENTS = 0, 1
_KINDS = {_ROWS: ROWS, _DOCUMENTS: MODALITIES}


@dataclass(frozen=True, slots=True)
class _Task:
    """What every task needs. `judged`: ids of the judged queries, if they are few."""

    storage: Storage
    labels: tuple[str, ...]
    judged: pa.Array | None
    parts: int

    def read(self, table: InputTable, group: tuple[TableFile, int]) -> pa.Table:
        """A row group as ROWS; of lists those of judged queries, if they are few."""
        if table == InputTable.QUERY:
            return pa.Table.from_batches(query_rows(self.storage, *group, self.labels), ROWS)
        rows = pa.Table.from_batches(table_rows(self.storage, table, *group), ROWS)
        if table == InputTable.QREL or self.judged is None:
            return rows
        return rows.filter(pc.is_in(rows["query_id"], value_set=self.judged))

    def packed(self, kind: int, key: str, rows: pa.Table) -> Iterator[pa.RecordBatch]:
        """Rows by a hash of their key, so that equal keys meet."""
        parts = key_hash(rows[key].combine_chunks()) % np.uint64(self.parts)
        order = np.argsort(parts, kind="stable")
        yield from pack(kind, parts[order], rows.take(pa.array(order)))


def read_blocks(runner: Runner, storage: Storage, inputs: Inputs, block_rows: int = BLOCK_ROWS) -> Iterator[Block]:
    """Blocks of about so many rows; those of a few tasks are here at a time."""
    judged, parts = _judged_ids(runner, storage, inputs), max(1, -(-inputs.rows // block_rows))
    task = _Task(storage, inputs.labels, judged, parts)

    def scatter(table: InputTable) -> Rows:
        return runner.scatter(
            inputs.row_groups(table),
            lambda group: task.packed(_ROWS, "query_id", task.read(table, group)),
            BATCHES,
            4 * runner.parallelism,
        )

    def block(part: int, tables: dict[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        rows, unjudged = judged_only(tables[_ROWS])
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, ROWS, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
            writer.write_table(rows)
        yield one_row(_BLOCKS, sink.getvalue().to_pybytes(), unjudged)

    rows = [scatter(table) for table in inputs.files if table != InputTable.CANDIDATE]
    rows.append(_candidates(runner, inputs, task))
    runner.describe("evaluate: the judged queries")
    for packed in runner.stream(runner.exchange(rows, task.parts, _KINDS, block, _BLOCKS)):
        with pa.ipc.open_stream(packed["rows"]) as reader:
            yield reader.read_all(), packed["unjudged"]


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
        yield from task.packed(_ROWS, "query_id", _with_modality(rows, pa.array([modality] * len(rows), pa.int8())))

    def by_document(group: tuple[TableFile, int]) -> Iterator[pa.RecordBatch]:
        yield from task.packed(_ROWS, "doc_id", task.read(InputTable.CANDIDATE, group))

    def read_documents(group: tuple[TableFile, int]) -> Iterator[pa.RecordBatch]:
        rows = pa.Table.from_batches(document_modalities(task.storage, *group), MODALITIES)
        yield from task.packed(_DOCUMENTS, "doc_id", rows)

    def join(part: int, tables: dict[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        known = tables[_DOCUMENTS].group_by("doc_id").aggregate([("modality", "max")]).combine_chunks()
        at = pc.index_in(tables[_ROWS]["doc_id"], value_set=known["doc_id"].combine_chunks())
        yield from task.packed(_ROWS, "query_id", _with_modality(tables[_ROWS], known["modality_max"].take(at)))

    runner.describe("evaluate: modalities of the documents")
    modality, *others = pc.unique(gather(runner, documents, footer, _MODALITY, tasks)["modality"]).to_pylist() or [None]
    if modality is not None and not others:
        return runner.scatter(groups, of_one_modality, BATCHES, tasks)
    rows = [runner.scatter(groups, by_document, BATCHES, tasks)]
    rows.append(runner.scatter(documents, read_documents, BATCHES, tasks))
    return runner.exchange(rows, task.parts, _KINDS, join, BATCHES)


def _with_modality(rows: pa.Table, modality: pa.Array | pa.ChunkedArray) -> pa.Table:
    return rows.set_column(ROWS.get_field_index("modality"), ROWS.field("modality"), modality)


def judged_only(rows: pa.Table) -> Block:
    """The rows (ROWS) of the queries that have a judgement, sorted, and the number of queries that have none."""
    table = rows["table"]
    judged_ids = pc.unique(rows["query_id"].filter(pc.equal(table, InputTable.QREL)))
    is_judged = pc.is_in(rows["query_id"], value_set=judged_ids)
    is_unjudged_query = pc.and_(pc.equal(table, InputTable.QUERY), pc.invert(is_judged))
    unjudged = pc.count_distinct(rows["query_id"].filter(is_unjudged_query)).as_py()
    return rows.filter(is_judged).sort_by([("query_id", "ascending"), ("doc_id", "ascending")]), unjudged
