"""Encoders' states of documents in the lake: immutable files that units write, rows of which are read by reference."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field

import numpy as np
import pyarrow as pa

from lakerank.errors import LakerankError
from lakerank.lake.blobs import BlobRef
from lakerank.lake.checksums import CorruptFile
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import parquet_bytes, read_table_file
from lakerank.records import DocumentState

logger = logging.getLogger(__name__)

#: A document's state by the hash of its content. An encoder is run in another `dtype` on other devices.
STATES = pa.schema(
    [(name, pa.string()) for name in ("doc_hash", "dtype")]
    + [("encoded", pa.binary()), ("tokens", pa.int32()), ("truncated", pa.bool_())]
)

#: Where a document's state is.
STATE_REFS = pa.schema(
    [(name, pa.string()) for name in ("doc_hash", "dtype", "file")] + [("row_group", pa.int32()), ("row", pa.int32())]
)

#: Bytes of states that are written together, and of a row group of them: what a worker has in memory.
_FILE_BYTES, _ROW_GROUP_BYTES = 64 * 2**20, 4 * 2**20


def states_folder(output: str, encoder: str) -> str:
    """The folder of one encoder's states."""
    return join(output, "states", f"encoder={encoder}")


def state_files(storage: Storage, output: str, encoder: str | None) -> list[str]:
    """The files of an encoder's states; None: there is none."""
    folder = "" if encoder is None else states_folder(output, encoder)
    return [join(folder, name) for name in storage.list_names(folder) if name.endswith(".parquet")] if folder else []


@contextmanager
def _reading(storage: Storage, uri: str) -> Iterator[None]:
    """Whatever a file's reading raises is logged: its documents are read again. One that is damaged is deleted."""
    try:
        yield
    except LakerankError as error:
        logger.warning("%s: its documents are read again", error)
        if isinstance(error, CorruptFile):
            storage.delete(uri)


def state_refs(storage: Storage, uri: str) -> Iterator[pa.Table]:
    """Where the states of a file are, as STATE_REFS; nothing where it cannot be read."""
    with _reading(storage, uri):
        for group, rows, batch in read_table_file(storage, uri, STATES, STATES.names[:2]):
            count = batch.num_rows
            columns = [*batch.columns, [uri] * count, np.full(count, group, np.int32), rows.astype(np.int32)]
            yield pa.Table.from_arrays([*map(pa.array, columns)], schema=STATE_REFS)


@dataclass
class UnitStates:
    """The states of a unit's documents in a folder: those known are read, and `reused` counts them; others are written.

    `check`: raises if the documents read so far are not those that were planned.
    """

    storage: Storage
    folder: str
    unit: str
    dtype: str
    check: Callable[[], None]
    reused: int = 0
    _parts: int = 0
    _wanted: list[tuple[str, DocumentState]] = field(default_factory=list)
    _group: tuple[str, int] | None = None
    _rows: pa.Table = field(default_factory=STATES.empty_table)

    def of(self, doc_hash: str, ref: BlobRef | None) -> DocumentState:
        """A document's state as it is kept; else a place for it, for when the document has been read."""
        state = None if ref is None else self._read(doc_hash, ref)
        if state is not None:
            self.reused += 1
            return state
        self._wanted.append((doc_hash, DocumentState()))
        return self._wanted[-1][1]

    def write(self, least_bytes: int = _FILE_BYTES) -> None:
        """Write the states that documents have left in their places, if these are so many bytes."""
        made = [(doc_hash, state) for doc_hash, state in self._wanted if state.encoded]
        if not made or sum(len(state.encoded) for _, state in made) < least_bytes:
            return
        self.check()
        rows = [(doc_hash, self.dtype, *astuple(state)) for doc_hash, state in dict(made).items()]
        table = pa.Table.from_arrays([*map(pa.array, zip(*rows, strict=True))], STATES.names).cast(STATES)
        content = parquet_bytes(table, max(1, _ROW_GROUP_BYTES * len(rows) // table.nbytes))
        self.storage.create(join(self.folder, f"{self.unit}-{self._parts}.parquet"), content)
        self._parts += 1
        written = {id(state) for _, state in made}
        self._wanted = [wanted for wanted in self._wanted if id(wanted[1]) not in written]

    def _read(self, doc_hash: str, ref: BlobRef) -> DocumentState | None:
        """The state at a place; None where it cannot be read, or is another document's."""
        if self._group != (ref.file, ref.row_group):
            self._group, self._rows = (ref.file, ref.row_group), STATES.empty_table()
            with _reading(self.storage, ref.file):
                read = read_table_file(self.storage, ref.file, STATES, row_groups=[ref.row_group])
                self._rows = pa.Table.from_batches([batch for *_, batch in read], schema=STATES)
        for row in self._rows.slice(ref.row, 1).to_pylist():
            if (row["doc_hash"], row["dtype"]) == (doc_hash, self.dtype):
                return DocumentState(row["encoded"], row["tokens"], row["truncated"])
        return None
