"""A table's key index: for each row its id, content hash, size and place, computed once a file and kept in the lake.

The index of a file is itself a file, named by the file's address and version: a table file that changes gets a new
index and an unchanged one is never read again. Text and pixels stay in the table.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from PIL import Image
from pyspark.sql import SparkSession

from lakerank.cost import Sizing, input_cost
from lakerank.fingerprint import content_hash
from lakerank.lake.blobs import check_unchanged
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import Fragment, index_key, parquet_bytes, read_table_file
from lakerank.schemas import DOCUMENTS, QUERIES
from lakerank.spark.runtime.frames import describe_job, gather, parallelism

TableName = Literal["documents", "queries"]

#: A row of a table without its content. Width and height are null without a readable image header.
INDEX = pa.schema(
    [
        ("id", pa.string()),
        ("hash", pa.string()),
        ("file", pa.string()),
        ("row_group", pa.int32()),
        ("row", pa.int32()),
        ("text_bytes", pa.int64()),
        ("image_bytes", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("empty", pa.bool_()),
    ]
)

#: Bytes and rows of a table file that one task indexes, about.
CHUNK_BYTES = 128 * 2**20
CHUNK_ROWS = 2**18

#: Rows in memory at once while a table is indexed: documents may be megabytes each.
ROWS_AT_ONCE = 1024

_SIZES = ("text_bytes", "width", "height")

#: How many bits of a document's number say where in its chunk it stands; the others say which chunk.
PLACE_BITS = 32

_BUILT = pa.schema([("rows", pa.int64())])


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some neighbouring row groups of a table file, about how many rows they have, and where their index lies."""

    file: str
    first_group: int
    end_group: int
    rows: int
    index_name: str


@dataclass(frozen=True, slots=True)
class TableIndex:
    """A table's index, complete. A row's number is its chunk's, then its place in the chunk: numbers rise as the
    table's files do."""

    storage: Storage
    folder: str
    chunks: tuple[Chunk, ...]
    sizing: Sizing

    def read(self, chunk: int, columns: Sequence[str] = INDEX.names) -> pa.Table:
        """The rows of a chunk, in file order, and what each costs. Columns: those asked for, and `cost` in tokens."""
        address = join(self.folder, self.chunks[chunk].index_name)
        wanted = list(dict.fromkeys([*columns, *_SIZES]))
        batches = [batch for *_, batch in read_table_file(self.storage, address, INDEX, wanted, 65_536)]
        rows = pa.Table.from_batches(batches, schema=pa.schema([INDEX.field(name) for name in wanted]))
        return rows.select(list(columns)).append_column("cost", _cost(rows, self.sizing))

    @property
    def rows(self) -> int:
        """About how many rows there are."""
        return sum(chunk.rows for chunk in self.chunks)


def table_index(
    spark: SparkSession, storage: Storage, output: str, table: TableName, files: Sequence[Fragment], sizing: Sizing
) -> TableIndex:
    """The index of a table; what is missing of it is made first."""
    folder = join(output, "index", table)
    chunks = tuple(chunk for file in files for chunk in _chunks(file))
    known = set(storage.list_names(folder))
    missing = [chunk for chunk in chunks if chunk.index_name not in known]
    schema, id_column = (DOCUMENTS, "doc_id") if table == "documents" else (QUERIES, "query_id")

    versions = {file.file.uri: file.file.version for file in files}

    def build(chunk: Chunk) -> Iterator[pa.RecordBatch]:
        rows = pa.Table.from_batches(_index_rows(storage, chunk, schema, id_column), schema=INDEX)
        check_unchanged(storage, versions, [chunk.file])  # or the index of this version would be of another's rows
        storage.create(join(folder, chunk.index_name), parquet_bytes(rows, row_group_rows=100_000))
        yield pa.RecordBatch.from_pydict({"rows": [rows.num_rows]}, schema=_BUILT)

    if missing:
        describe_job(spark, f"plan: index {table}, {len(missing)} of {len(chunks)} chunks")
        gather(spark, missing, build, _BUILT, tasks=max(4 * parallelism(spark), len(missing) // 8))
    return TableIndex(storage, folder, chunks, sizing)


def _chunks(fragment: Fragment) -> Iterator[Chunk]:
    wanted = max(-(-fragment.file.size // CHUNK_BYTES), -(-fragment.rows // CHUNK_ROWS))
    parts = max(1, min(fragment.row_groups, wanted))
    key = index_key(fragment.file)
    for part in range(parts):
        first, end = part * fragment.row_groups // parts, (part + 1) * fragment.row_groups // parts
        yield Chunk(fragment.file.uri, first, end, fragment.rows // parts + 1, f"{key}-{first:05d}.parquet")


def _index_rows(storage: Storage, chunk: Chunk, schema: pa.Schema, id_column: str) -> Iterator[pa.RecordBatch]:
    batches = read_table_file(
        storage, chunk.file, schema, batch_rows=ROWS_AT_ONCE, row_groups=range(chunk.first_group, chunk.end_group)
    )
    for row_group, first_row, batch in batches:
        ids, texts, images = (batch.column(name).to_pylist() for name in (id_column, "text", "image"))
        known = batch.column("content_hash").to_pylist() if "content_hash" in schema.names else [None] * len(ids)
        sizes = [_image_size(image) for image in images]
        yield pa.RecordBatch.from_pydict(
            {
                "id": ids,
                "hash": [given or content_hash(t, i) for given, t, i in zip(known, texts, images, strict=True)],
                "file": [chunk.file] * len(ids),
                "row_group": [row_group] * len(ids),
                "row": range(first_row, first_row + len(ids)),
                "text_bytes": [len(text or b"") for text in texts],
                "image_bytes": [len(image or b"") for image in images],
                "width": [size[0] for size in sizes],
                "height": [size[1] for size in sizes],
                "empty": [i is None and not (t or b"").strip() for t, i in zip(texts, images, strict=True)],
            },
            schema=INDEX,
        )


def _cost(rows: pa.Table, sizing: Sizing) -> pa.Array:
    text, width, height = (
        rows[name].fill_null(0).to_numpy().astype(np.int64) for name in ("text_bytes", "width", "height")
    )
    return pa.array(input_cost(text, width, height, sizing))


def _image_size(image: bytes | None) -> tuple[int, int] | tuple[None, None]:
    """Size from the header alone, for the forecast; whether the image may be scored is the model room's to say."""
    if not image:
        return None, None
    try:
        with Image.open(io.BytesIO(image)) as opened:
            return opened.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None, None
