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
from pyspark.sql import DataFrame, SparkSession

from lakerank.cost import Sizing, input_cost
from lakerank.fingerprint import content_hash
from lakerank.lake.blobs import check_unchanged
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import Fragment, index_key, parquet_bytes, read_table_file
from lakerank.schemas import DOCUMENTS, QUERIES
from lakerank.spark.frames import describe_job, gather, parallelism, scatter

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

#: Bytes of a table file that one task indexes.
CHUNK_BYTES = 128 * 2**20

#: Rows in memory at once while a table is indexed: documents may be megabytes each.
ROWS_AT_ONCE = 64

_COSTED = INDEX.append(pa.field("cost", pa.int64()))
_BUILT = pa.schema([("rows", pa.int64())])


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some row groups of a table file, and where their index lies."""

    file: str
    row_groups: tuple[int, ...]
    index_name: str


def key_index(
    spark: SparkSession, storage: Storage, output: str, table: TableName, files: Sequence[Fragment], sizing: Sizing
) -> DataFrame:
    """The key index of a table, completing what is missing of it first. Columns: INDEX and `cost`, in tokens."""
    folder = join(output, "index", table)
    chunks = [chunk for file in files for chunk in _chunks(file)]
    versions = {file.file.uri: file.file.version for file in files}
    known = set(storage.list_names(folder))
    missing = [chunk for chunk in chunks if chunk.index_name not in known]
    schema, id_column = (DOCUMENTS, "doc_id") if table == "documents" else (QUERIES, "query_id")

    def build(chunk: Chunk) -> Iterator[pa.RecordBatch]:
        rows = pa.Table.from_batches(_index_rows(storage, chunk, schema, id_column), schema=INDEX)
        check_unchanged(storage, versions, [chunk.file])  # or the index of this version would be of another's rows
        storage.create(join(folder, chunk.index_name), parquet_bytes(rows, row_group_rows=100_000))
        yield pa.RecordBatch.from_pydict({"rows": [rows.num_rows]}, schema=_BUILT)

    def read(chunk: Chunk) -> Iterator[pa.RecordBatch]:
        for _, _, batch in read_table_file(storage, join(folder, chunk.index_name), INDEX):
            yield batch.append_column("cost", _cost(batch, sizing))

    describe_job(spark, f"index {table}: {len(missing)} of {len(chunks)} chunks")
    gather(spark, missing, build, _BUILT)
    return scatter(spark, chunks, read, _COSTED, tasks=4 * parallelism(spark))


def _chunks(fragment: Fragment) -> Iterator[Chunk]:
    parts = max(1, min(fragment.row_groups, -(-fragment.file.size // CHUNK_BYTES)))
    key = index_key(fragment.file)
    for part in range(parts):
        first, last = part * fragment.row_groups // parts, (part + 1) * fragment.row_groups // parts
        yield Chunk(fragment.file.uri, tuple(range(first, last)), f"{key}-{first:05d}.parquet")


def _index_rows(storage: Storage, chunk: Chunk, schema: pa.Schema, id_column: str) -> Iterator[pa.RecordBatch]:
    batches = read_table_file(storage, chunk.file, schema, batch_rows=ROWS_AT_ONCE, row_groups=chunk.row_groups)
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


def _cost(batch: pa.RecordBatch, sizing: Sizing) -> pa.Array:
    text, width, height = (
        batch[name].fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        for name in ("text_bytes", "width", "height")
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
