"""Delta tables: the data files of a version, and their deleted rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lakerank.credentials import redacted
from lakerank.errors import ConfigError, LakerankError, StorageError, requires
from lakerank.lake import absolute, is_local, join, local_path, scheme
from lakerank.lake.backends import storage_errors
from lakerank.lake.backends.s3 import delta_options
from lakerank.lake.snapshot import Field, TableFile, TableSnapshot, nested_fields, packed
from lakerank.lake.storage import Storage
from lakerank.ranking import Int64

_ADDRESS = re.compile(r"delta\+(?P<table>.+?)(?:@(?P<version>\d+))?")
#: Features of a table that change how it is read, and that are honoured here or do not matter to our columns.
_FEATURES = {
    "columnMapping", "deletionVectors", "timestampNtz", "typeWidening", "typeWidening-preview", "v2Checkpoint",
    "vacuumProtocolCheck", "variantType", "variantType-preview", "variantShredding-preview",
}  # fmt: skip
#: What deltalake says of a table that it cannot read.
_UNSUPPORTED = re.compile("Unsupported table features|Unsupported: Feature|Max catalog version")
_PARTITION = "partition."
_PHYSICAL_NAME, _ID = (f"delta.columnMapping.{name}".encode() for name in ("physicalName", "id"))


def snapshot(storage: Storage, address: str) -> TableSnapshot:
    """A table at the version that the address names, by default at its latest.

    Raises:
        ConfigError: the address cannot be one.
        DependencyError: deltalake is not installed.
        StorageError: there is no such table or version, or it cannot be read.
    """
    root, version = parse(address)
    with storage_errors(address, "read"), _unsupported(address):
        table = _load(storage, address, root, version)
        if unknown := sorted(set(table.protocol().reader_features or ()) - _FEATURES):
            raise _refused(address, f"has the reader features {', '.join(unknown)}")
        metadata, schema = table.metadata(), pa.schema(table.schema().to_arrow())
        fields = _fields(schema, metadata.configuration.get("delta.columnMapping.mode", "none"))
        files = [*_files(address, table, root, fields)]
    return TableSnapshot(
        f"delta+{root}@{table.version()}",
        sorted(files, key=lambda file: file.uri),
        identity={"uuid": str(metadata.id), "snapshot": table.version()},
        schema=schema,
    )


def parse(address: str) -> tuple[str, str | None]:
    """The table's folder, and the version where one is named. Raises ConfigError: the address cannot be one."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise ConfigError([f"{redacted(address)}: expected delta+ADDRESS, with @VERSION for another than the latest"])
    return absolute(match["table"]), match["version"]


def location(storage: Storage, address: str, root: str) -> tuple[str, dict[str, str]]:
    """Where deltalake finds a folder, and its options. Raises DependencyError: it is not installed."""
    with requires("delta", f"{redacted(address)}: needs deltalake"):
        import deltalake  # noqa: F401
    return (str(local_path(root)), {}) if is_local(root) else (root, delta_options(storage.options))


def _load(storage: Storage, address: str, root: str, version: str | None) -> Any:
    uri, options = location(storage, address, root)
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    try:
        return DeltaTable(uri, None if version is None else int(version), options)
    except TableNotFoundError as error:
        raise StorageError(
            f"{redacted(address)}: no Delta table is there (no _delta_log/ in {redacted(uri)})"
        ) from error
    except DeltaError as error:
        if version is None:
            raise
        latest = DeltaTable(uri, storage_options=options).version()
        raise StorageError(
            f"{redacted(address)}: version {version} cannot be read ({redacted(str(error))}); the latest is {latest}. "
            "What is older than delta.logRetentionDuration is deleted: raise that where runs take longer"
        ) from error


@contextmanager
def _unsupported(address: str) -> Iterator[None]:
    """Say what to do about a table that deltalake cannot read."""
    try:
        yield
    except Exception as error:
        if _UNSUPPORTED.search(str(error)) and not isinstance(error, LakerankError):
            raise _refused(address, redacted(str(error))) from error
        raise


def _refused(address: str, what: str) -> StorageError:
    return StorageError(
        f"{redacted(address)}: {what}, which is not read here: drop the feature (ALTER TABLE … DROP FEATURE), or have "
        "Spark read the table: spark-table://CATALOG.NAMESPACE.TABLE"
    )


def _fields(schema: pa.Schema, mode: str) -> dict[str, Field]:
    """The table's columns: under which names, and in mode `id` by which numbers, its files have them."""
    nested = nested_fields(schema)
    if mode == "none":
        return {path: Field(None, (path,)) for path in nested}
    own = {path: field.metadata[_PHYSICAL_NAME].decode() for path, field in nested.items()}
    fields = {}
    for path, field in nested.items():
        parents = [path[:at] for at, character in enumerate(path) if character == "."]
        physical = ".".join(own[parent] for parent in (*parents, path))
        fields[path] = Field(int(field.metadata[_ID]) if mode == "id" else None, (physical,))
    return fields


def _files(address: str, table: Any, root: str, fields: Mapping[str, Field]) -> Iterator[TableFile]:
    adds = pa.table(table.get_add_actions(flatten=True))
    names = [name for name in adds.schema.names if name.startswith(_PARTITION)]
    values = pa.table({name.removeprefix(_PARTITION): pc.cast(adds[name], pa.string()) for name in names})
    deleted = _deleted_rows(table) if "deletionVectors" in (table.protocol().reader_features or ()) else {}
    columns = (adds[name].to_pylist() for name in ("path", "size_bytes", "num_records"))
    for path, size, rows, row_values in zip(*columns, values.to_pylist() or [{}] * adds.num_rows, strict=True):
        name = unquote(path)
        positions = deleted.pop(name, np.zeros(0, np.int64))
        yield TableFile(
            name if scheme(name) else join(root, name),
            size,
            fields=fields,
            values=row_values,
            deleted=packed(positions) if len(positions) else None,
            rows=rows,
        )
    if deleted:
        raise StorageError(
            f"{redacted(address)}: deletion vectors of files that it does not list: {', '.join(deleted)}"
        )


def _deleted_rows(table: Any) -> dict[str, Int64]:
    """Positions of the deleted rows of each file that has any, rising, by the file's name below the table."""
    deleted = {}
    for batch in pa.table(table.deletion_vectors()).to_batches(max_chunksize=1):
        kept = batch["selection_vector"].flatten().to_numpy(zero_copy_only=False)
        name = batch["filepath"][0].as_py().removeprefix(f"{table.table_uri.rstrip('/')}/")
        deleted[unquote(name)] = np.flatnonzero(~kept)
    return deleted
