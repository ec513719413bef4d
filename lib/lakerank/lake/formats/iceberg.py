"""Iceberg tables: the data files that a catalog's table has at one snapshot, and their deleted rows.

Catalogs are those that pyiceberg knows by name, from its own file and environment.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from lakerank.credentials import redacted, settings_without
from lakerank.errors import ConfigError, StorageError, requires
from lakerank.lake.backends import storage_errors
from lakerank.lake.snapshot import Field, TableFile, TableSnapshot, nested_fields, packed
from lakerank.lake.storage import Storage
from lakerank.ranking import Int64

_ADDRESS = re.compile(
    r"iceberg://(?P<catalog>[^/@\s]+)/(?P<table>[^/@\s]+\.[^/@.\s]+)(?:@(?P<ref>[^@:]+)(?::(?P<schema>\d+))?)?"
)
_FIELD_ID = b"PARQUET:field_id"
_THREADS = 16
_SHOWN = 10


class _Address(NamedTuple):
    """`ref`: a snapshot, a branch or a tag. `schema`: the one whose names hold, where the address is pinned."""

    catalog: str
    table: str
    ref: str | None
    schema: str | None


def snapshot(storage: Storage, address: str) -> TableSnapshot:
    """A table at the snapshot that the address names, by default at its current one.

    Raises:
        ConfigError: the address cannot be one.
        DependencyError: pyiceberg is not installed.
        StorageError: there is no such catalog, table or snapshot, or it cannot be read.
    """
    place = parse(address)
    with storage_errors(address, "read"):
        table = _load(address, place)
        pinned, described, rule = _described(address, place, table)
        data, deletes = _entries(address, table.io, pinned)
        deleted = _deleted_rows(table.io, deletes)
        files = [rule.table_file(entry.data_file, _rows_deleted(entry, deleted)) for entry in data]
    return replace(described, files=sorted(files, key=lambda file: file.uri))


def described(address: str, ref: str | None, content: bytes, location: str) -> tuple[TableSnapshot, ReadingRule]:
    """A table by one of its metadata files, at a snapshot, a branch or a tag: without files, and how those are read."""
    with requires("iceberg", f"{address}: needs pyiceberg"):
        from pyiceberg.catalog.noop import NoopCatalog
        from pyiceberg.io.pyarrow import PyArrowFileIO
        from pyiceberg.serializers import Compressor, FromByteStream
        from pyiceberg.table import StaticTable
    metadata = FromByteStream.table_metadata(BytesIO(content), compression=Compressor.get_compressor(location))
    table = StaticTable(("table",), metadata, location, PyArrowFileIO(), NoopCatalog("spark"))
    return _described(address, _Address("", "", ref, None), table)[1:]


def _described(address: str, place: _Address, table: Any) -> tuple[Any, TableSnapshot, ReadingRule]:
    """A table's snapshot as pyiceberg has it and as we do, without files, and how those are read."""
    pinned, schema = _snapshot_and_schema(address, place, table)
    rule = ReadingRule(schema, table.specs(), table.properties.get("schema.name-mapping.default", "[]"))
    identity = {"uuid": str(table.metadata.table_uuid), "snapshot": pinned.snapshot_id, "schema": schema.schema_id}
    name = f"iceberg://{place.catalog}/{place.table}@{pinned.snapshot_id}:{schema.schema_id}"
    return pinned, TableSnapshot(name, (), identity=identity, schema=schema.as_arrow()), rule


def parse(address: str) -> _Address:
    """The parts of an address. Raises ConfigError: it cannot be one."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        form = (
            "iceberg://CATALOG/NAMESPACE.TABLE, with @SNAPSHOT, @BRANCH or @TAG for another than the current snapshot"
        )
        raise ConfigError([f"{redacted(address)}: expected {form}"])
    return _Address(**match.groupdict())


def open_catalog(address: str, name: str) -> Any:
    """A catalog of pyiceberg's own configuration. Secrets in that are shown nowhere from now on.

    Raises:
        DependencyError: pyiceberg is not installed.
        StorageError: it knows no such catalog.
    """
    with requires("iceberg", f"{address}: needs pyiceberg"):
        from pyiceberg.catalog import load_catalog
        from pyiceberg.utils.config import Config
    config = Config()
    properties: Any = config.get_catalog_config(name)
    if properties is None:
        known = _listed(config.get_known_catalogs())
        variable = f"PYICEBERG_CATALOG__{name.upper()}__URI"
        raise StorageError(
            f"{address}: pyiceberg knows no catalog {name!r} (it knows {known}); name it in ~/.pyiceberg.yaml "
            f"or by {variable}"
        )
    settings_without(properties)
    return load_catalog(name, **properties)


def _load(address: str, place: _Address) -> Any:
    catalog = open_catalog(address, place.catalog)
    from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError

    try:
        table = catalog.load_table(place.table)
    except NoSuchTableError as error:
        namespace = place.table.rpartition(".")[0]
        try:
            kind, names = "tables", catalog.list_tables(namespace)
        except NoSuchNamespaceError:
            kind, names = "namespaces", catalog.list_namespaces()
        raise StorageError(f"{address}: no such table ({kind}: {_listed(map('.'.join, names))})") from error
    settings_without(table.io.properties)
    return table


def _snapshot_and_schema(address: str, place: _Address, table: Any) -> tuple[Any, Any]:
    """The snapshot that an address names, and the schema whose names hold: the table's own, of which a
    branch's and the current snapshot's rows are read, or that of the time of an older snapshot."""
    refs, ref = table.metadata.refs, place.ref
    if ref is None or ref in refs:
        snapshot = table.snapshot_by_name(ref or "main")
        is_old = ref is not None and refs[ref].snapshot_ref_type.value == "tag"
    else:
        snapshot, is_old = table.snapshot_by_id(int(ref)) if ref.isdecimal() else None, True
    if snapshot is None and ref is None:
        raise StorageError(f"{address}: the table has no snapshot yet: nothing has been written")
    if snapshot is None:
        present = [*refs, *(str(known.snapshot_id) for known in reversed(table.snapshots()))]
        gone = (
            "it has been expired since it was read: keep snapshots for longer than a run takes "
            "(history.expire.max-snapshot-age-ms, history.expire.min-snapshots-to-keep), and use another --run-id"
        )
        raise StorageError(
            f"{address}: no such snapshot (there are {_listed(present)}){f'; {gone}' if place.schema else ''}"
        )
    schema = place.schema or (snapshot.schema_id if is_old else None)
    return snapshot, table.schema() if schema is None else table.schemas()[int(schema)]


def _entries(address: str, io: Any, snapshot: Any) -> tuple[list[Any], list[Any]]:
    """A snapshot's manifest entries: of data files, and of the files that delete rows by their positions.

    Raises:
        StorageError: there are others that matter: rows deleted by value, and files that are not plain Parquet.
    """
    from pyiceberg.manifest import DataFileContent

    def read(manifest: Any) -> Any:
        return manifest.fetch_manifest_entry(io, discard_deleted=True)

    with ThreadPoolExecutor(_THREADS, "manifests") as pool:
        entries = [*chain.from_iterable(pool.map(read, snapshot.manifests(io)))]
    kinds: dict[Any, list[Any]] = {kind: [] for kind in DataFileContent}
    for entry in entries:
        kinds[entry.data_file.content].append(entry)
    data = kinds[DataFileContent.DATA]
    oldest = min((_age(entry) for entry in data), default=0)
    if any(_age(entry) > oldest for entry in kinds[DataFileContent.EQUALITY_DELETES]):
        raise _refused(address, "equality deletes", "rewrite_data_files with delete-file-threshold=1")
    formats = {entry.data_file.file_format.value for entry in entries} - {"PARQUET", "PUFFIN"}
    if formats or any(entry.data_file.key_metadata for entry in entries):
        what = f"{' and '.join(sorted(formats)) or 'encrypted'} files"
        raise _refused(address, what, "rewrite_data_files with write.format.default=parquet")
    return data, kinds[DataFileContent.POSITION_DELETES]


def _refused(address: str, what: str, remedy: str) -> StorageError:
    return StorageError(
        f"{address}: has {what}, which are not read here: have an engine that reads them rewrite the table ({remedy}), "
        "or have Spark read it: spark-table://CATALOG.NAMESPACE.TABLE"
    )


def _age(entry: Any) -> int:
    """The sequence number: deletes hold for files that are not younger. Tables of format 1 have none."""
    return entry.sequence_number or 0


def _deleted_rows(io: Any, deletes: Sequence[Any]) -> dict[str, list[tuple[int, Int64]]]:
    """By data file, the sequence numbers of its deletes and the positions that they delete."""
    files = {entry.data_file.file_path: entry for entry in deletes}  # vectors of several data files may share a file
    deleted = defaultdict(list)
    with ThreadPoolExecutor(_THREADS, "deletes") as pool:
        positions = pool.map(lambda entry: _positions(io, entry.data_file), files.values())
        for entry, of_files in zip(files.values(), positions, strict=True):
            for path, rows in of_files.items():
                deleted[path].append((_age(entry), rows))
    return deleted


def _rows_deleted(entry: Any, deleted: Mapping[str, Sequence[tuple[int, Int64]]]) -> Int64:
    """Positions of the deleted rows of a data file, rising."""
    of_file = [rows for age, rows in deleted.get(entry.data_file.file_path, ()) if age >= _age(entry)]
    return np.unique(np.concatenate(of_file)) if of_file else np.zeros(0, np.int64)


def _positions(io: Any, file: Any) -> dict[str, Int64]:
    """What a file of position deletes or of deletion vectors deletes."""
    from pyiceberg.table.deletion_vector import deletion_vectors_from_puffin_file
    from pyiceberg.table.puffin import PuffinFile

    with io.new_input(file.file_path).open() as stream:
        if file.file_format.value == "PUFFIN":
            vectors = deletion_vectors_from_puffin_file(PuffinFile(stream.read()))
            return {vector.referenced_data_file: vector.to_vector().to_numpy() for vector in vectors}
        rows = pq.read_table(stream, columns=["file_path", "pos"])
    paths = rows["file_path"].combine_chunks().dictionary_encode()
    order = np.argsort(paths.indices.to_numpy(), kind="stable")
    codes, positions = paths.indices.to_numpy()[order], rows["pos"].to_numpy()[order]
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    of_files = zip(codes[starts], np.split(positions, starts[1:]), strict=True)
    return {paths.dictionary[int(code)].as_py(): of_file for code, of_file in of_files}


class ReadingRule:
    """How data files are read by a schema: columns by field id, and values that files lack."""

    def __init__(self, schema: Any, specs: Mapping[int, Any], name_mapping: str) -> None:
        names = dict(_mapped_names(json.loads(name_mapping)))
        nested = nested_fields(schema.as_arrow())
        ids = {path: int(field.metadata[_FIELD_ID]) for path, field in nested.items()}
        self.fields = {path: Field(number, names.get(number, ())) for path, number in ids.items()}
        self.defaults = {
            field.name: str(field.initial_default) for field in schema.fields if field.initial_default is not None
        }
        self.partitions = {number: [*_identities(spec, schema)] for number, spec in specs.items()}

    def table_file(self, file: Any, deleted: Int64) -> TableFile:
        """A data file with its deleted rows."""
        values: dict[str, str | None] = dict(self.defaults)
        for position, name, field_type, transform in self.partitions[file.spec_id]:
            value = file.partition[position]
            values[name] = None if value is None else transform.to_human_string(field_type, value)
        return TableFile(
            file.file_path,
            file.file_size_in_bytes,
            fields=self.fields,
            values=values,
            deleted=packed(deleted) if len(deleted) else None,
            rows=file.record_count,
        )


def _identities(spec: Any, schema: Any) -> Iterator[tuple[int, str, Any, Any]]:
    """The columns that a partition spec has as they are: (position in the spec, name, type, transform)."""
    from pyiceberg.transforms import IdentityTransform

    for position, field in enumerate(spec.fields):
        if isinstance(field.transform, IdentityTransform) and (name := schema.find_column_name(field.source_id)):
            yield position, name, schema.find_type(field.source_id), field.transform


def _mapped_names(fields: Sequence[Any], parents: Sequence[str] = ("",)) -> Iterator[tuple[int, tuple[str, ...]]]:
    """A name mapping's dotted paths by field id: those that columns have in files without field ids."""
    for field in fields:
        paths = tuple(f"{parent}{name}" for parent in parents for name in field["names"])
        if "field-id" in field:
            yield field["field-id"], paths
        yield from _mapped_names(field.get("fields", ()), [f"{path}." for path in paths])


def _listed(names: Iterable[str]) -> str:
    """What there is, for a message."""
    known = [*names]
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return f"{', '.join(known[:_SHOWN])}{more}" if known else "none"
