"""The shuffle: Arrow batches of keys from task to task, which the JVM moves unopened, thousands of rows in one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import reduce

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import DataFrame
from pyspark.sql.pandas.types import from_arrow_schema

#: A shuffled Arrow batch: the partition it goes to, the kind of its rows, and the rows, compressed.
BATCHES = pa.schema([("part", pa.int32()), ("kind", pa.int8()), ("batch", pa.binary())])

_SIZE_BYTES = 8  # a compressed batch begins with its uncompressed size


def pack(kind: int, parts: npt.NDArray[np.integer], rows: pa.Table) -> Iterator[pa.RecordBatch]:
    """Rows (N,) sorted by partition number (N,) as BATCHES: one Arrow batch a partition."""
    if not rows.num_rows:
        return
    whole = rows.combine_chunks().to_batches()[0]
    edges = np.flatnonzero(np.diff(parts)) + 1
    starts, ends = np.concatenate([[0], edges]), np.concatenate([edges, [len(parts)]])
    batches = [
        _compress(whole.slice(start, end - start).serialize())
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]
    numbers = np.asarray(parts)[starts].astype(np.int32)
    kinds = np.full(len(batches), kind, np.int8)
    arrays = [pa.array(numbers), pa.array(kinds), pa.array(batches, pa.binary())]
    yield pa.RecordBatch.from_arrays(arrays, schema=BATCHES)


def exchange(
    frames: Sequence[DataFrame],
    parts: int,
    kinds: Mapping[int, pa.Schema],
    work: Callable[[int, dict[int, pa.Table]], Iterator[pa.RecordBatch]],
    schema: pa.Schema,
) -> DataFrame:
    """Shuffle Arrow batches by partition and run `work` on each partition: one task each.

    Args:
        frames: frames of BATCHES.
        kinds: the schema of each kind of rows.
        work: gets the partition's number and its rows of every kind, in no particular order.
        schema: what `work` yields.
    """

    def run(rows: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        received: dict[int, list[pa.RecordBatch]] = {kind: [] for kind in kinds}
        for row in rows:
            for kind, batch in zip(row.column("kind").to_pylist(), row.column("batch"), strict=True):
                received[kind].append(pa.ipc.read_record_batch(decompress(batch.as_buffer()), kinds[kind]))
        context = TaskContext.get()
        tables = {
            kind: pa.Table.from_batches(received.pop(kind), schema=kinds[kind]).combine_chunks() for kind in kinds
        }
        yield from work(context.partitionId() if context else 0, tables)

    union = reduce(DataFrame.unionAll, frames)
    return union.repartitionById(parts, "part").mapInArrow(run, from_arrow_schema(schema))


def decompress(batch: pa.Buffer) -> pa.Buffer:
    """The serialized Arrow batch of a row of BATCHES."""
    size = int.from_bytes(batch.slice(0, _SIZE_BYTES).to_pybytes(), "little")
    return pa.decompress(batch.slice(_SIZE_BYTES), size, "zstd")


def _compress(message: pa.Buffer) -> bytes:
    return int(message.size).to_bytes(_SIZE_BYTES, "little") + bytes(pa.compress(message, "zstd", asbytes=True))
