"""Arrow blocks that tasks hand to each other: the JVM moves each unopened, thousands of rows in one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import DataFrame
from pyspark.sql.pandas.types import from_arrow_schema

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

#: A block on its way: the part it goes to, what kind of rows it holds, and the rows.
BLOCKS = pa.schema([("part", pa.int32()), ("kind", pa.int8()), ("block", pa.binary())])

_SIZE_BYTES = 8  # a block begins with how large it is once unpacked
_MAX_WEIGHTS = 4096


def packed(kind: int, parts: npt.NDArray[np.integer], rows: pa.Table) -> Iterator[pa.RecordBatch]:
    """Rows (N,) whose part numbers (N,) rise, as BLOCKS: one block a part."""
    if not rows.num_rows:
        return
    whole = rows.combine_chunks().to_batches()[0]
    edges = np.flatnonzero(np.diff(parts)) + 1
    starts, ends = np.concatenate([[0], edges]), np.concatenate([edges, [len(parts)]])
    blocks = [
        _packed(whole.slice(start, end - start).serialize())
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]
    numbers = np.asarray(parts)[starts].astype(np.int32)
    kinds = np.full(len(blocks), kind, np.int8)
    yield pa.RecordBatch.from_arrays([pa.array(numbers), pa.array(kinds), pa.array(blocks, pa.binary())], schema=BLOCKS)


def exchange(
    blocks: Sequence[DataFrame],
    parts: int,
    kinds: Mapping[int, pa.Schema],
    work: Callable[[int, dict[int, pa.Table]], Iterator[pa.RecordBatch]],
    schema: pa.Schema,
) -> DataFrame:
    """Bring the blocks of each part together and run `work` on them: one task a part.

    Args:
        blocks: frames of BLOCKS.
        kinds: the schema of each kind of rows.
        work: gets the part's number and its rows of every kind, in no particular order.
        schema: what `work` yields.
    """

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        received: dict[int, list[pa.RecordBatch]] = {kind: [] for kind in kinds}
        for batch in batches:
            for kind, block in zip(batch.column("kind").to_pylist(), batch.column("block"), strict=True):
                received[kind].append(pa.ipc.read_record_batch(_unpacked(block.as_buffer()), kinds[kind]))
        context = TaskContext.get()
        tables = {
            kind: pa.Table.from_batches(received.pop(kind), schema=kinds[kind]).combine_chunks() for kind in kinds
        }
        yield from work(context.partitionId() if context else 0, tables)

    frame = blocks[0]
    for other in blocks[1:]:
        frame = frame.unionAll(other)
    return frame.repartitionById(parts, "part").mapInArrow(run, from_arrow_schema(schema))


def key_hash(keys: pa.Array) -> UInt64:
    """A 64-bit hash of each string, the same in every process and version: (N,) -> (N,); null hashes as "".

    Each byte is multiplied by a weight that belongs to its position (multilinear hashing), then the sum is mixed. It
    only spreads keys over parts: keys themselves are compared wherever two must be the same.
    """
    keys = keys.cast(pa.binary()).fill_null(b"")
    _, offsets_buffer, data_buffer = keys.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[keys.offset : keys.offset + len(keys) + 1].astype(np.int64)
    if data_buffer is None or offsets[-1] == offsets[0]:
        return _mixed(np.diff(offsets).astype(np.uint64))
    data = np.frombuffer(data_buffer, np.uint8)[offsets[0] : offsets[-1]].astype(np.uint64)
    offsets = offsets - offsets[0]
    lengths = np.diff(offsets)
    position = np.arange(len(data)) - np.repeat(offsets[:-1], lengths)
    weighted = (data + np.uint64(1)) * _WEIGHTS[position % _MAX_WEIGHTS]
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(weighted, dtype=np.uint64)])
    return _mixed(sums[offsets[1:]] - sums[offsets[:-1]] + lengths.astype(np.uint64))


def part_of(hashes: UInt64, bits: int) -> npt.NDArray[np.int32]:
    """The part of 2^bits that each hash goes to. Twice as many parts split each part in two."""
    return (hashes >> np.uint64(64 - bits)).astype(np.int32) if bits else np.zeros(len(hashes), np.int32)


def _packed(message: pa.Buffer) -> bytes:
    return int(message.size).to_bytes(_SIZE_BYTES, "little") + bytes(pa.compress(message, "zstd", asbytes=True))


def _unpacked(block: pa.Buffer) -> pa.Buffer:
    size = int.from_bytes(block.slice(0, _SIZE_BYTES).to_pybytes(), "little")
    return pa.decompress(block.slice(_SIZE_BYTES), size, "zstd")


def _mixed(values: UInt64) -> UInt64:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)), dtype=np.uint64)


_WEIGHTS = _mixed(np.arange(1, _MAX_WEIGHTS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(1)
