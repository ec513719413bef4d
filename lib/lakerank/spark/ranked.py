"""The lists of a published run as a table of Arrow, pandas, polars, DuckDB or Spark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, get_args

import pyarrow as pa

from lakerank.credentials import redacted
from lakerank.errors import ConfigError, DependencyError, RunNotFoundError
from lakerank.lake.backends import storage_errors
from lakerank.lake.publication import find_run
from lakerank.lake.runs import RunPaths, read_manifest
from lakerank.lake.storage import Storage, StorageOptions, join
from lakerank.lake.tables import opened

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

Engine = Literal["arrow", "pandas", "polars", "duckdb", "spark"]

#: What installs the library of an engine, where it is not called as the engine.
_INSTALLED_BY = {"arrow": "pyarrow", "spark": "'lakerank[spark]'"}

#: Spark has no unsigned numbers: those of its own Parquet reader.
_IN_SPARK = {
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.decimal128(20),
}

#: Rows of an Arrow batch in a Spark task.
_BATCH_ROWS = 10_000


def read_ranked(
    output: str, run: str = "current", engine: Engine = "arrow", *, storage: Mapping[str, Any] | None = None
) -> Any:
    """All lists of a published run, sorted by query and rank; every byte is checked against its checksum.

    Args:
        output: the folder that `lake.output` names, at any URI.
        run: a run id; `current` is the run that is published now.
        storage: settings of `lake.storage`, such as `endpoint_url`. Keys come from the environment or a profile.

    Returns:
        The columns of `ranked/` with ids of the tables' own types, as a pyarrow Table, a DataFrame of pandas or polars,
        a relation of DuckDB, or a Spark DataFrame of the active session, or else of a new one, whose tasks read the
        files when it is used.

    Raises:
        RunNotFoundError: there is no such run, or it is not published.
        StorageError: the pointer, the manifest or a file is damaged or cannot be read.
        DependencyError: the engine's library is not installed.
        ConfigError: an unknown engine or setting.
    """
    settings, names = dict(storage or {}), [field.name for field in fields(StorageOptions)]
    faults = [f"storage: no setting {name!r}; there are {', '.join(names)}" for name in settings if name not in names]
    if engine not in get_args(Engine):
        faults.append(f"engine {engine!r}: expected {', '.join(get_args(Engine))}")
    if faults:
        raise ConfigError(faults)
    _library(engine)
    opened_storage = Storage(StorageOptions(**settings))
    files = _files(opened_storage, str(output), run)
    if engine == "spark":
        return _in_spark(opened_storage, files)
    table = pa.concat_tables(_read(opened_storage, file) for file in files)
    if engine == "pandas":
        return table.to_pandas(types_mapper=_nullable)
    return table if engine == "arrow" else _library(engine).from_arrow(table)


def _library(engine: str) -> Any:
    """The engine's library. Raises DependencyError: it is not installed."""
    try:
        return import_module({"arrow": "pyarrow", "spark": "pyspark.sql"}.get(engine, engine))
    except ImportError as error:
        library = _INSTALLED_BY.get(engine, engine)
        raise DependencyError(f"read_ranked(engine={engine!r}) needs {engine}: pip install {library}") from error


def _files(storage: Storage, output: str, run: str) -> list[str]:
    """The files of a published run's lists, in the order of the queries."""
    run_id = find_run(storage, output, run)
    manifest, paths = read_manifest(storage, output, run_id), RunPaths(output, run_id)
    if manifest is None:
        raise RunNotFoundError(
            f"run {run_id!r} in {redacted(output)} is not published: its audit failed (runs/{run_id}/audit.json); "
            "jobs/rerank.py --publish-anyway publishes it"
        )
    return [join(paths.ranked, file["file"]) for file in manifest["ranked_files"]]


def _read(storage: Storage, file: str) -> pa.Table:
    with opened(storage, file) as parquet, storage_errors(file, "read"):
        return parquet.read()


def _nullable(kind: pa.DataType) -> Any:
    """Pandas' own type for whole numbers, of which some may be null: floats would change large ids."""
    from pandas.api.types import pandas_dtype

    name = str(kind).replace("uint", "UInt").replace("int", "Int")
    return pandas_dtype(name) if pa.types.is_integer(kind) else None


def _in_spark(storage: Storage, files: Sequence[str]) -> DataFrame:
    """A frame whose tasks read a file each, with the lake's own clients: Spark needs no connector to the store."""
    from pyspark.sql import SparkSession

    from lakerank.spark.runtime.runner import SparkRunner
    from lakerank.spark.runtime.session import start

    with opened(storage, files[0]) as parquet:
        schema = pa.schema([field.with_type(_IN_SPARK.get(field.type, field.type)) for field in parquet.schema_arrow])

    def read(file: str) -> Iterator[pa.RecordBatch]:
        yield from _read(storage, file).cast(schema).to_batches(_BATCH_ROWS)

    session = SparkSession.getActiveSession() or start("lakerank", {})
    return SparkRunner(session).scatter(files, read, schema)
