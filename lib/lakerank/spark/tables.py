"""Tables of a session's catalogs: which Parquet files Spark reads of them, and which rows of those are left.

Spark gives each row's file and its position there; what a file has and Spark does not read is deleted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_type

from lakerank.errors import ConfigError, StorageError
from lakerank.lake.formats import SPARK_TABLE, iceberg
from lakerank.lake.snapshot import Field, TableFile, TableSnapshot, nested_fields, packed
from lakerank.lake.storage import Storage

_NAME = r"(?:`[^`]+`|[^`@.\s]+)"
_ADDRESS = re.compile(rf"{SPARK_TABLE}(?P<name>{_NAME}(?:\.{_NAME})*)(?:@(?P<version>[\w.-]+))?")
_THREADS = 16

#: Columns with each row's file and its position there: of Spark's own readers, as a URI with percents; of Iceberg's.
SPARKS, ICEBERGS = ("_metadata.file_path", "_metadata.row_index"), ("_file", "_pos")

#: Rows whose presence one of Spark's bitmaps says.
_BITMAP_ROWS = 8 * 4096

_VIEW = "name the table below it, or write its rows as Parquet"


@dataclass(frozen=True, slots=True)
class Reading:
    """How a table's files are read, as of `TableFile`; `partitions`: columns that are alike in all rows of a file;
    `version`: the table's, whose files are never written again; None: a table of plain files, which may be."""

    positions: tuple[str, str]
    fields: Mapping[str, Field]
    partitions: Sequence[str]
    defaults: Mapping[str, str | None]
    version: int | None = None


def snapshot(spark: SparkSession, storage: Storage, address: str) -> TableSnapshot:
    """A table at the version that the address names, by default at its latest.

    Raises:
        ConfigError: the address cannot be one.
        StorageError: Spark cannot read it, or what it reads are not Parquet files row by row.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        form = f"{SPARK_TABLE}CATALOG.NAMESPACE.TABLE, with @VERSION for another than the latest"
        raise ConfigError([f"{address}: expected {form}, and `backticks` around names with other characters"])
    name, version = ".".join(f"`{part.strip('`')}`" for part in re.findall(_NAME, match["name"])), match["version"]
    with _explained(address):
        frame, pinned, kind = spark.table(name), f"{SPARK_TABLE}{match['name']}", _kind(spark, address, name)
        if kind == "iceberg":
            table, reading = _iceberg(spark, storage, address, name, version)
        else:
            table, reading = _by_name(spark, address, name, kind == "delta", version)
        if reading.version is not None:
            frame = spark.sql(f"SELECT * FROM {name} VERSION AS OF {reading.version}")  # noqa: S608 - quoted
            pinned = f"{pinned}@{reading.version}"
        elif version is not None:
            raise ConfigError([f"{address}: a table of plain files has no versions: leave @{version} out"])
        files = sorted(table_files(storage, frame, reading), key=lambda file: file.uri)
    if not files:
        raise StorageError(f"{address}: has no rows")
    return replace(table, address=pinned, files=files, identity={"table": pinned, **table.identity})


def table_files(storage: Storage, frame: DataFrame, reading: Reading) -> Iterator[TableFile]:
    """The files that a frame's rows are in. Of each Spark sends a bitmap of its rows where some are missing."""
    file, position = map(F.col, reading.positions)
    values = F.array(*(F.col(f"`{name}`").cast("string") for name in reading.partitions))
    rows = frame.select(file.alias("file"), (position + 1).alias("number"), values.alias("values"))
    has_gaps = F.count("*") < F.max("number") - (F.first(F.bitmap_bucket_number("number")) - 1) * _BITMAP_ROWS
    bitmaps = rows.groupBy("file", F.bitmap_bucket_number("number").alias("bitmap")).agg(
        F.max("number").alias("end"),
        F.when(has_gaps, F.bitmap_construct_agg(F.bitmap_bit_position("number"))).alias("bits"),
        F.first("values").alias("values"),
    )
    files = bitmaps.groupBy("file").agg(
        F.collect_list(F.struct("bitmap", "end", "bits")).alias("bitmaps"), F.first("values").alias("values")
    )
    with ThreadPoolExecutor(_THREADS, "footers") as pool:
        yield from pool.map(partial(_table_file, storage, reading), files.toLocalIterator(prefetchPartitions=True))


def _table_file(storage: Storage, reading: Reading, row: Any) -> TableFile:
    """A file whose other rows than those of `bitmaps` are deleted."""
    uri = file_uri(row.file, reading.positions == SPARKS)
    info = storage.info(uri)
    with storage.open_parquet(uri) as parquet:
        count = parquet.metadata.num_rows
    deleted = np.ones(count, np.bool_)
    for bitmap, end, bits in row.bitmaps:
        if end > count:
            raise StorageError(f"{uri}: has {count} rows, and Spark read row {end}: replaced meanwhile, start again")
        place = slice((bitmap - 1) * _BITMAP_ROWS, end)
        deleted[place] = False
        if bits is not None:
            present = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")
            deleted[place] = present[: end - place.start] == 0
    positions = np.flatnonzero(deleted)
    return TableFile(
        uri,
        info.size,
        info.version if reading.version is None else "",
        values={**reading.defaults, **dict(zip(reading.partitions, row["values"], strict=True))},
        deleted=packed(positions) if len(positions) else None,
        fields=reading.fields,
        rows=count,
    )


def file_uri(path: str, encoded: bool) -> str:
    """A file's address, of Spark's name for it."""
    path = unquote(path) if encoded else path
    if path.startswith("file:"):
        return f"/{path.removeprefix('file:').lstrip('/')}"
    return re.sub(r"^s3[an]://", "s3://", path)


def _kind(spark: SparkSession, address: str, name: str) -> str:
    """What keeps a table: the format's name in Spark."""
    about = {row.col_name: row.data_type for row in spark.sql(f"DESCRIBE TABLE EXTENDED {name}").collect()}
    kind = (about.get("Provider") or "").lower()
    if about.get("Type") == "VIEW" or not kind:
        raise StorageError(f"{address}: is a view, or no table of files: {_VIEW}")
    if kind not in ("parquet", "hive", "delta", "iceberg"):
        raise StorageError(f"{address}: is kept as {kind}; tables of Parquet files are read, Delta's and Iceberg's too")
    return kind


def _iceberg(
    spark: SparkSession, storage: Storage, address: str, name: str, ref: str | None
) -> tuple[TableSnapshot, Reading]:
    """An Iceberg table by its last metadata file, without its data files, and how those are read."""
    log = spark.table(f"{name}.metadata_log_entries").select("file").collect()
    location = file_uri(log[-1].file, encoded=False)
    table, rule = iceberg.described(address, ref, storage.read_bytes(location), location)
    partitions = sorted({column for spec in rule.partitions.values() for _, column, *_ in spec})
    return table, Reading(ICEBERGS, rule.fields, partitions, rule.defaults, int(table.identity["snapshot"]))


def _by_name(
    spark: SparkSession, address: str, name: str, is_delta: bool, version: str | None
) -> tuple[TableSnapshot, Reading]:
    """A table whose files have its columns by their names, or, of its partition columns, not at all."""
    fields = []
    for field in spark.table(name).schema:
        with suppress(PySparkException):  # a type that Arrow lacks
            fields.append(pa.field(field.name, to_arrow_type(field.dataType)))
    partitions = [column.name for column in spark.catalog.listColumns(name) if column.isPartition]
    in_files = {path: Field(None, (path,)) for path in nested_fields(fields) if path not in partitions}
    if is_delta:
        mapping = spark.sql(f"SHOW TBLPROPERTIES {name} ('delta.columnMapping.mode')").collect()[0].value
        if mapping in ("name", "id"):
            raise StorageError(f"{address}: has column mapping: name the table by its address, delta+ADDRESS")
        version = version or spark.sql(f"DESCRIBE HISTORY {name} LIMIT 1").collect()[0].version
    reading = Reading(SPARKS, in_files, partitions, {}, int(version) if is_delta and version is not None else None)
    identity = {} if reading.version is None else {"snapshot": reading.version}
    return TableSnapshot(address, (), identity=identity, schema=pa.schema(fields)), reading


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """Say in a line what Spark could not find."""
    try:
        yield
    except AnalysisException as error:
        condition, first = error.getCondition() or "", str(error).partition("\n")[0]
        if condition.startswith(("UNRESOLVED_COLUMN", "FIELD_NOT_FOUND")):
            first = f"Spark does not say which rows of which Parquet files it reads ({condition}): {_VIEW}"
        raise StorageError(f"{address}: {first}; catalogs are configured by Spark's properties (spark.conf)") from error
