"""The lists of a published run as a table of Arrow, pandas, polars, DuckDB or Spark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, Literal, get_args

import pyarrow as pa

from lakerank.errors import ConfigError, DependencyError
from lakerank.export.job import run_files
from lakerank.lake.ids import SIGNED
from lakerank.lake.publication import find_run
from lakerank.lake.storage import Storage, StorageOptions

Engine = Literal["arrow", "pandas", "polars", "duckdb", "spark"]

#: The library of an engine, where it is not called so.
_LIBRARIES = {"arrow": "pyarrow", "spark": "pyspark"}


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
        RunNotFoundError, ExportError: there is no such run, or it is not published.
        StorageError: the pointer, the manifest or a file is damaged or cannot be read.
        DependencyError: the engine's library is not installed.
        ConfigError: an unknown engine. TypeError: an unknown setting.
    """
    if engine not in get_args(Engine):
        raise ConfigError([f"engine {engine!r}: expected {', '.join(get_args(Engine))}"])
    name = _LIBRARIES.get(engine, engine)
    try:
        library = import_module(name)
    except ImportError as error:
        raise DependencyError(f"read_ranked(engine={engine!r}) needs {name}: pip install {name}") from error
    store = Storage(StorageOptions(**storage or {}))
    files = run_files(store, str(output), find_run(store, str(output), run))
    if engine == "spark":
        return _in_spark(store, files)
    table = pa.concat_tables(_read(store, file) for file in files)
    if engine == "pandas":
        # Numbers of Arrow: of pandas' own, those with a null among them would be floats, and large ids others.
        return table.to_pandas(types_mapper=lambda t: library.ArrowDtype(t) if pa.types.is_integer(t) else None)
    return table if engine == "arrow" else library.from_arrow(table)


def _read(storage: Storage, file: str) -> pa.Table:
    with storage.open_parquet(file) as parquet:
        return pa.Table.from_batches(storage.batches(file, parquet), parquet.schema_arrow)


def _in_spark(storage: Storage, files: Sequence[str]) -> Any:
    """A frame whose tasks read a file each, with the lake's own clients: Spark needs no connector to the store."""
    from pyspark.sql import SparkSession

    from lakerank.spark.runtime.runner import SparkRunner
    from lakerank.spark.runtime.session import start

    with storage.open_parquet(files[0]) as parquet:
        schema = pa.schema([field.with_type(SIGNED.get(field.type, field.type)) for field in parquet.schema_arrow])

    def read(file: str) -> Iterator[pa.RecordBatch]:
        yield from _read(storage, file).cast(schema).to_batches(10_000)

    session = SparkSession.getActiveSession() or start("lakerank", {})
    return SparkRunner(session).scatter(files, read, schema)
