"""Tables that a run's ranked rows are written to, Iceberg's and Delta's: one commit a run, and only once."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from lakerank.credentials import redacted, settings_without
from lakerank.errors import ConfigError, SchemaError, StorageError
from lakerank.fingerprint import fingerprint
from lakerank.lake import DELTA, ICEBERG, is_local, join, local_path
from lakerank.lake.backends import storage_errors
from lakerank.lake.formats import delta, iceberg
from lakerank.lake.ids import SIGNED, is_text
from lakerank.lake.storage import Storage
from lakerank.schemas import RANKED

logger = logging.getLogger(__name__)

#: The column that tells the runs in a table apart.
RUN_ID = "run_id"

_MADE_FROM, _OUTPUT, _PUBLICATION = (f"lakerank.{name}" for name in ("made_from", "output", "publication"))
_TRIES, _FIRST_WAIT_S, _LONGEST_WAIT_S = 8, 0.2, 20
_BATCH_ROWS = 65_536

#: In place of a snapshot: rows of a later run have replaced those that were to be written.
_LATER = -1


class CommitConflict(StorageError):
    """Another writer has committed to a table meanwhile, or it is not known whether our commit was taken."""


@dataclass(frozen=True, slots=True)
class OutputTable:
    """An Iceberg or a Delta table by its address. `append`: it keeps the rows of other runs, with a column `run_id`."""

    address: str
    append: bool = False


@dataclass(frozen=True, slots=True)
class RunRows:
    """The rows of a published run, from the files of its ranked/ down to a rank.

    `made_from` is in the properties of the commit, by which it is found again. `publication`: the run's number in its
    lake, `output`; None: the rows are written even where those of a later run are.
    """

    output: str
    run_id: str
    publication: int | None
    made_from: str
    files: Sequence[str]
    depth: int | None = None

    @classmethod
    def of(cls, output: str, folder: str, manifest: Mapping[str, Any], depth: int | None = None) -> RunRows:
        """The rows of the run of a manifest, whose lists are in a folder."""
        run_id, published_at = manifest["run_id"], manifest["published_at"]
        made_from = fingerprint({"run": [run_id, manifest["scorer"], published_at], "depth": depth}, length=32)
        files = [join(folder, file["file"]) for file in manifest["ranked_files"]]
        place = str(local_path(output).absolute()) if is_local(output) else output
        return cls(place, run_id, manifest.get("publication", 0), made_from, files, depth)

    @property
    def properties(self) -> dict[str, str]:
        """What the commit says of itself."""
        about = {_OUTPUT: redacted(self.output), _PUBLICATION: str(self.publication or 0)}
        return {"lakerank.run_id": self.run_id, _MADE_FROM: self.made_from} | about

    def schema(self, storage: Storage) -> pa.Schema:
        """The columns of the rows, as ranked/ has them."""
        if not self.files:
            return RANKED
        with storage.open_parquet(self.files[0]) as parquet:
            return parquet.schema_arrow

    def batches(self, storage: Storage, file: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """The rows of a file, in a table's columns.

        Raises:
            SchemaError: the table's type cannot hold a value.
        """
        for batch in storage.batches(file, batch_size=_BATCH_ROWS):
            if self.depth is not None:
                batch = batch.filter(pc.less_equal(batch["rank"], self.depth))
            yield _conformed(batch, schema, self.run_id)


def check_output(storage: Storage, table: OutputTable) -> None:
    """Check a table before a run is made for it.

    Raises:
        ConfigError: it is no address of a table that can be written.
        DependencyError: the format's library is not installed.
        SchemaError, StorageError: it lacks a column, or cannot be reached.
    """
    with storage_errors(table.address, "read"):
        _columns(table, _open(storage, table.address).load(), RANKED)


def write_rows(storage: Storage, table: OutputTable, rows: RunRows) -> dict[str, Any]:
    """Commit rows to a table, unless the table has them, or those of a later run of the same lake.

    Without `append` they replace all other rows in the same commit.

    Returns:
        `table`, its address; `snapshot`, the one that has the rows, or None: those of a later run are there.

    Raises:
        ConfigError, DependencyError, SchemaError: as of `check_output`, or a type of the table cannot hold the rows.
        StorageError: it cannot be written, or others have written to it again and again.
    """
    target, schema = _open(storage, table.address), rows.schema(storage)
    waits = wait_random_exponential(_FIRST_WAIT_S, _LONGEST_WAIT_S)
    conflicts = retry_if_exception_type(CommitConflict)
    for attempt in Retrying(stop=stop_after_attempt(_TRIES), wait=waits, retry=conflicts, reraise=True):
        with attempt, storage_errors(table.address, "written"):
            columns = _columns(table, target.load(), schema)
            if (snapshot := _committed(target, table, rows)) is None:
                own_rows = f"{RUN_ID} = '{rows.run_id}'"
                if table.append and target.has_rows(own_rows):
                    raise StorageError(
                        f"{redacted(table.address)}: has rows of an earlier run {rows.run_id!r}: delete those of "
                        f"{own_rows}, then run the same command again, or use another --run-id"
                    )
                logger.info("run %s: writing its rows to %s", rows.run_id, redacted(table.address))
                snapshot = target.write(rows, columns, table.append)
    return {"table": table.address, "snapshot": None if snapshot == _LATER else snapshot}


def _committed(target: _Iceberg | _Delta, table: OutputTable, rows: RunRows) -> int | None:
    """The snapshot that has the rows, or _LATER; None where they are to be written."""
    for snapshot, properties in target.commits():
        if properties.get(_MADE_FROM) == rows.made_from:
            return snapshot
        if _MADE_FROM in properties and not table.append:
            own = rows.publication if properties.get(_OUTPUT) == rows.properties[_OUTPUT] else None
            return _LATER if own is not None and int(properties[_PUBLICATION]) > own else None
    return None


def _columns(table: OutputTable, existing: pa.Schema | None, rows: pa.Schema) -> pa.Schema:
    """The columns of a table that takes rows; a new one has the rows' own."""
    wanted = [field.with_type(SIGNED.get(field.type, field.type)).with_nullable(True) for field in rows]
    wanted += [pa.field(RUN_ID, pa.string())] if table.append else []
    if existing is None:
        return pa.schema(wanted)
    if missing := [field for field in wanted if field.name not in existing.names]:
        names = ", ".join(f"{field.name} ({field.type})" for field in missing)
        raise SchemaError(
            f"{redacted(table.address)}: the table has no column {names}: add what is missing (ALTER TABLE … ADD "
            "COLUMNS …), or name a table that is not there, which is then made"
        )
    return existing


def _conformed(batch: pa.RecordBatch, schema: pa.Schema, run_id: str) -> pa.RecordBatch:
    """Rows with the columns of a table: those that it alone has are null, but for the run's id."""
    own = {RUN_ID: pa.repeat(run_id, batch.num_rows)} | {name: batch[name] for name in batch.schema.names}
    arrays = []
    for field in schema:
        column = own[field.name] if field.name in own else pa.nulls(batch.num_rows, field.type)
        try:
            if is_text(column.type) and not is_text(field.type):
                raise pa.ArrowInvalid("no text is taken for another type")
            arrays.append(column.cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise SchemaError(
                f"column {field.name!r} of the table is {field.type}, and that of the rows {column.type} ({error}); "
                "change its type, or name a table that is not there, which is then made"
            ) from error
        if column.null_count and not field.nullable:
            raise SchemaError(f"column {field.name!r} of the table takes no nulls, which rows of ranked/ have in it")
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


class _Iceberg:
    """A table in a catalog. Data files are written once, however often their commit meets others."""

    def __init__(self, storage: Storage, address: str) -> None:
        place = iceberg.parse(address)
        _check_newest(address, place.ref)
        self._storage, self._address, self._name = storage, address, place.table
        self._catalog = iceberg.open_catalog(address, place.catalog)
        self._table: Any = None
        self._files: list[Any] | None = None

    def load(self) -> pa.Schema | None:
        """Load the table anew. Its columns; None where it is not there."""
        from pyiceberg.exceptions import NoSuchTableError

        namespace = self._name.rpartition(".")[0]
        try:
            self._table = self._catalog.load_table(self._name)
        except NoSuchTableError as error:
            if not self._catalog.namespace_exists(namespace):
                raise StorageError(
                    f"{self._address}: the catalog has no namespace {namespace!r}: create it, or name another"
                ) from error
            return None
        settings_without(self._table.io.properties)
        schema: pa.Schema = self._table.schema().as_arrow()
        return schema

    def commits(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Snapshots with their properties, newest first."""
        snapshot = self._table.current_snapshot() if self._table is not None else None
        while snapshot is not None:
            yield snapshot.snapshot_id, snapshot.summary.additional_properties if snapshot.summary else {}
            parent = snapshot.parent_snapshot_id
            snapshot = None if parent is None else self._table.snapshot_by_id(parent)

    def has_rows(self, condition: str) -> bool:
        """Whether the table has a row that a condition of SQL holds for."""
        return self._table is not None and bool(self._table.scan(condition, limit=1).to_arrow().num_rows)

    def write(self, rows: RunRows, schema: pa.Schema, append: bool) -> int:
        """Write all rows and commit them; returns the snapshot. Raises CommitConflict: the table has changed."""
        from pyiceberg.exceptions import CommitFailedException, CommitStateUnknownException, ValidationException

        if self._table is None:
            self._table = self._catalog.create_table_if_not_exists(self._name, schema)
            schema = self._table.schema().as_arrow()
        if self._files is None:
            self._files = [*self._write_files(rows, schema)]
        # What conflicts is looked at again by us: pyiceberg would append the same rows behind another driver's.
        self._table.metadata.properties["commit.retry.num-retries"] = "0"
        try:
            with self._table.transaction() as transaction:
                update = transaction.update_snapshot(rows.properties)
                producer = update.fast_append() if append else update.overwrite()
                for file in self._files:
                    producer.append_data_file(file)
                for task in () if append else self._table.scan().plan_files():
                    producer.delete_data_file(task.file)
                producer.commit()
        except (CommitFailedException, CommitStateUnknownException, ValidationException) as error:
            raise _conflict(self._address, rows, error) from error
        return int(producer.snapshot_id)

    def _write_files(self, rows: RunRows, schema: pa.Schema) -> Iterator[Any]:
        """Data files of the rows of each file of ranked/, whose rows are in memory at once."""
        from pyiceberg.io.pyarrow import _dataframe_to_data_files

        for file in rows.files:
            part = pa.Table.from_batches(rows.batches(self._storage, file, schema), schema)
            yield from _dataframe_to_data_files(self._table.metadata, part, self._table.io) if len(part) else ()


class _Delta:
    """A table in a folder. Rows are streamed, and once more where their commit meets others."""

    def __init__(self, storage: Storage, address: str) -> None:
        root, version = delta.parse(address)
        _check_newest(address, version)
        self._storage, self._address = storage, address
        self._uri, self._options = delta.location(storage, address, root)
        self._table: Any = None

    def load(self) -> pa.Schema | None:
        from deltalake import DeltaTable
        from deltalake.exceptions import TableNotFoundError

        try:
            self._table = DeltaTable(self._uri, storage_options=self._options)
        except TableNotFoundError:
            return None
        return pa.schema(self._table.schema().to_arrow())

    def commits(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        for commit in self._table.history() if self._table is not None else ():
            yield commit["version"], commit

    def has_rows(self, condition: str) -> bool:
        from deltalake import QueryBuilder

        if self._table is None:
            return False
        table = QueryBuilder().register("ranked", self._table)
        return bool(table.execute(f"SELECT 1 FROM ranked WHERE {condition} LIMIT 1").read_all().num_rows)  # noqa: S608

    def write(self, rows: RunRows, schema: pa.Schema, append: bool) -> int:
        from deltalake import CommitProperties, write_deltalake
        from deltalake.exceptions import CommitFailedError, DeltaError

        batches = (batch for file in rows.files for batch in rows.batches(self._storage, file, schema))
        # Spark's DESCRIBE HISTORY shows of these only userMetadata. No retries: see _Iceberg.write.
        said = {**rows.properties, "userMetadata": json.dumps(rows.properties)}
        new = self._table is None
        try:
            write_deltalake(
                self._uri if new else self._table,
                pa.RecordBatchReader.from_batches(schema, batches),
                mode="error" if new else "append" if append else "overwrite",
                storage_options=self._options,
                commit_properties=CommitProperties(said, max_commit_retries=0),
            )
        except DeltaError as error:
            if isinstance(error, CommitFailedError) or (new and "already exists" in str(error)):
                raise _conflict(self._address, rows, error) from error
            raise
        return 0 if new else int(self._table.version())


def _open(storage: Storage, address: str) -> _Iceberg | _Delta:
    for beginning, kind in ((ICEBERG, _Iceberg), (DELTA, _Delta)):
        if address.startswith(beginning):
            return kind(storage, address)
    expected = "iceberg://CATALOG/NAMESPACE.TABLE or delta+ADDRESS"
    raise ConfigError([f"{redacted(address)}: no table that ranked rows can be written to: expected {expected}"])


def _check_newest(address: str, snapshot: str | None) -> None:
    if snapshot is not None:
        raise ConfigError([f"{redacted(address)}: a table is written at its newest snapshot; leave out the @"])


def _conflict(address: str, rows: RunRows, error: Exception) -> CommitConflict:
    return CommitConflict(
        f"{redacted(address)}: the rows of run {rows.run_id!r} are not in the table: others have committed to it in "
        f"each of {_TRIES} tries ({redacted(str(error))}); run the same command again, which does no other work twice"
    )
