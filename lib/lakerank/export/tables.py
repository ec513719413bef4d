"""Flat tables of ranked pairs, as databases and notebooks load them: Parquet and CSV."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.csv

from lakerank.export.format import ExportList, Format, Target, headed
from lakerank.lake.tables import parquet_bytes
from lakerank.schemas import GOLDEN, RANKED

_COLUMNS = tuple(RANKED.names)

#: Rows of a row group: a reader looking up one query reads little.
ROW_GROUP_ROWS = 50_000


def parquet(_target: Target) -> Format:
    """Parquet with the columns of ranked/, sorted by query and rank."""
    return Format(".parquet", _COLUMNS, _batches_of(RANKED), finish=_parquet_of(RANKED))


def golden_pairs(_target: Target) -> Format:
    """Parquet of `query_id, doc_id, logit`: what `audit.golden_pairs` in a config may name."""
    return Format(".parquet", tuple(GOLDEN.names), _batches_of(GOLDEN), finish=_parquet_of(GOLDEN))


def flat_csv(_target: Target) -> Format:
    """CSV with the columns of ranked/ and a header; strings in quotes, null as nothing between two commas."""

    def encode(ranked: ExportList) -> bytes:
        sink = pa.BufferOutputStream()
        options = pyarrow.csv.WriteOptions(include_header=False)  # made here: it does not pickle
        pyarrow.csv.write_csv(_batch(ranked, RANKED), sink, options)
        return bytes(sink.getvalue())

    return Format(".csv", _COLUMNS, encode, finish=headed(",".join(_COLUMNS).encode() + b"\n"))


def _batch(ranked: ExportList, schema: pa.Schema) -> pa.RecordBatch:
    columns = [pa.array([getattr(row, field.name) for row in ranked.rows], field.type) for field in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _batches_of(schema: pa.Schema) -> Callable[[ExportList], bytes]:
    return lambda ranked: bytes(_batch(ranked, schema).serialize())


def _parquet_of(schema: pa.Schema) -> Callable[[Sequence[bytes]], bytes]:
    def finish(pieces: Sequence[bytes]) -> bytes:
        batches = [pa.ipc.read_record_batch(pa.py_buffer(piece), schema) for piece in pieces]
        return parquet_bytes(pa.Table.from_batches(batches, schema), row_group_rows=ROW_GROUP_ROWS)

    return finish
