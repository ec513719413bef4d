"""The figures query by query, as Parquet beside the report: for whoever wants to look further than it does."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pyarrow as pa

from lakerank.lake.runs import RunPaths
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import parquet_bytes

_ROW_GROUP_ROWS = 100_000


def folder(paths: RunPaths) -> str:
    """Where everything of an evaluation but the report and its figures lies."""
    return join(paths.folder, "evaluation")


def write_query_figures(storage: Storage, paths: RunPaths, parts: Mapping[int, pa.Table]) -> None:
    """Write the numbered parts and remove others, which an earlier evaluation left."""
    for number, table in parts.items():
        write_part(storage, paths, number, table)
    keep_parts(storage, paths, parts)


def write_part(storage: Storage, paths: RunPaths, number: int, table: pa.Table) -> None:
    """Write one part, over an old one if there is one."""
    storage.replace(_address(paths, _name(number)), parquet_bytes(table, _ROW_GROUP_ROWS))


def keep_parts(storage: Storage, paths: RunPaths, numbers: Collection[int]) -> None:
    """Remove all parts but these."""
    kept = {_name(number) for number in numbers}
    for name in storage.list_names(join(folder(paths), "queries")):
        if name not in kept:
            storage.delete(_address(paths, name))


def _address(paths: RunPaths, name: str) -> str:
    return join(folder(paths), "queries", name)


def _name(number: int) -> str:
    return f"part-{number:05d}.parquet"
