"""Iceberg and Delta tables for tests: written by the formats' own libraries, and what those do not write, by hand."""

from __future__ import annotations

import json
import struct
import uuid
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog import load_catalog
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat, ManifestContent, ManifestWriterV2
from pyiceberg.table.snapshots import Operation
from pyiceberg.table.update.snapshot import _FastAppendFiles
from pyroaring import BitMap

from lakerank.lake.storage import Storage
from lakerank.lake.tables import fragments, read_table_file
from lakerank.plan.plan import Tables
from lakerank.schemas import DOCUMENTS

_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_PATH_ID = 2147483546


class _DeletesWriter(ManifestWriterV2):
    """A manifest of delete files, which pyiceberg reads and does not write."""

    def content(self) -> ManifestContent:
        return ManifestContent.DELETES

    @property
    def _meta(self) -> dict[str, str]:
        return {**super()._meta, "content": "deletes"}


class _AppendDeletes(_FastAppendFiles):
    def new_manifest_writer(self, spec: Any) -> ManifestWriterV2:
        own = self.spec(self._added_data_files[0].spec_id)  # the table's may be another since
        return _DeletesWriter(own, self.schema(), self.new_manifest_output(), self._snapshot_id, self._compression)


@dataclass(frozen=True)
class IcebergLake:
    """A SQLite catalog in a folder, which pyiceberg knows as `lake`, with the namespace `db`."""

    folder: Path

    @property
    def catalog(self) -> Any:
        return load_catalog("lake", **self.settings)

    @property
    def settings(self) -> dict[str, str]:
        """What pyiceberg's file says of the catalog."""
        folder = self.folder
        return {"type": "sql", "uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"file://{folder}/warehouse"}

    def table(self, name: str) -> Any:
        return self.catalog.load_table(f"db.{name}")

    def create(self, name: str, rows: pa.Table, partition: str | None = None, **properties: str) -> Any:
        table = self.catalog.create_table(f"db.{name}", rows.schema, properties=properties)
        if partition is not None:
            with table.update_spec() as update:
                update.add_identity(partition)
        table.append(rows)
        return table

    def delete_rows(self, name: str, ids: Iterable[str], vector: bool = False) -> None:
        """Delete documents by their positions: by a Parquet file as of format 2, or a Puffin file as of format 3."""
        table = self.table(name)
        doc_id = table.schema().find_field("doc_id").field_id
        deletes, blobs = [], b"PFA1"
        footer: list[dict[str, Any]] = []
        path = f"{table.location()}/data/{uuid.uuid4()}.puffin"
        for task in table.scan().plan_files():
            ids_of_file = _column_by_field_id(task.file.file_path, doc_id)
            rows = [row for row, value in enumerate(ids_of_file) if value in set(ids)]
            if rows and vector:
                blob = _vector_blob(rows)
                about = {"referenced-data-file": task.file.file_path, "cardinality": str(len(rows))}
                place = {"offset": len(blobs), "length": len(blob), "snapshot-id": -1, "sequence-number": -1}
                footer.append({"type": "deletion-vector-v1", "fields": [2147483645], "properties": about, **place})
                blobs += blob
                deletes.append((task.file, path, len(rows)))
            elif rows:
                of_file = f"{table.location()}/data/{uuid.uuid4()}-deletes.parquet"
                positions = {"file_path": [task.file.file_path] * len(rows), "pos": rows}
                pq.write_table(pa.table(positions), of_file.removeprefix("file://"))
                deletes.append((task.file, of_file, len(rows)))
        if vector:
            payload = json.dumps({"blobs": footer, "properties": {}}).encode()
            content = blobs + b"PFA1" + payload + struct.pack("<ii", len(payload), 0) + b"PFA1"
            Path(path.removeprefix("file://")).write_bytes(content)
        self.commit_deletes(name, [_delete_file(*delete) for delete in deletes])

    def commit_deletes(self, name: str, files: Iterable[DataFile]) -> None:
        for _, of_spec in groupby(sorted(files, key=lambda file: file.spec_id), lambda file: file.spec_id):
            table = self.table(name)
            with table.transaction() as transaction:
                update = _AppendDeletes(Operation.DELETE, transaction, table.io)
                for file in of_spec:
                    update.append_data_file(file)
                update.commit()

    def commit_file(self, name: str, **changes: Any) -> None:
        """Commit an entry of a file that is not there: the table's first one, with changes; as a delete or as data."""
        table = self.table(name)
        first = next(iter(table.scan().plan_files())).file
        kind = {"content": DataFileContent.DATA, "file_format": FileFormat.PARQUET}
        size = {"partition": first.partition, "record_count": 1, "file_size_in_bytes": 1}
        file = DataFile.from_args(**{"file_path": f"{first.file_path}-2", **kind, **size, **changes})
        file.spec_id = first.spec_id
        if file.content != DataFileContent.DATA:
            self.commit_deletes(name, [file])
            return
        with table.transaction() as transaction, transaction.update_snapshot().fast_append() as update:
            update.append_data_file(file)


def _column_by_field_id(path: str, field_id: int) -> list[Any]:
    rows = pq.read_table(path.removeprefix("file://"), partitioning=None)
    ids = [int((field.metadata or {}).get(b"PARQUET:field_id", -1)) for field in rows.schema]
    return rows.column(ids.index(field_id)).to_pylist()


def _delete_file(data_file: DataFile, path: str, rows: int) -> DataFile:
    bounds = None if path.endswith(".puffin") else {_PATH_ID: data_file.file_path.encode()}
    file = DataFile.from_args(
        content=DataFileContent.POSITION_DELETES,
        file_path=path,
        file_format=FileFormat.PUFFIN if path.endswith(".puffin") else FileFormat.PARQUET,
        partition=data_file.partition,
        record_count=rows,
        file_size_in_bytes=Path(path.removeprefix("file://")).stat().st_size if bounds else 1,
        lower_bounds=bounds,
        upper_bounds=bounds,
    )
    file.spec_id = data_file.spec_id
    return file


def _vector_blob(rows: Sequence[int]) -> bytes:
    vector = bytes.fromhex("D1D33964") + struct.pack("<qi", 1, 0) + BitMap(rows).serialize()
    return struct.pack(">i", len(vector)) + vector + struct.pack(">I", zlib.crc32(vector))


@pytest.fixture
def iceberg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> IcebergLake:
    """An empty Iceberg lake, whose catalog is in pyiceberg's own file."""
    folder = tmp_path / "iceberg"
    folder.mkdir()
    lake = IcebergLake(folder)
    (folder / ".pyiceberg.yaml").write_text(yaml.safe_dump({"catalog": {"lake": lake.settings}}))
    monkeypatch.setenv("PYICEBERG_HOME", str(folder))
    lake.catalog.create_namespace("db")
    return lake


@dataclass(frozen=True)
class DeltaLog:
    """Commits to a Delta table by hand, of what deltalake does not write: deletion vectors and mapped columns."""

    folder: Path

    @property
    def table(self) -> DeltaTable:
        return DeltaTable(self.folder)

    def commit(self, *actions: Mapping[str, Any]) -> None:
        folder = self.folder / "_delta_log"
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / f"{len(list(folder.glob('*.json'))):020}.json"
        log.write_text("\n".join(map(json.dumps, actions)))

    def protocol(self, *features: str) -> dict[str, Any]:
        versions = {"minReaderVersion": 3, "minWriterVersion": 7}
        return {"protocol": {**versions, "readerFeatures": features, "writerFeatures": features}}

    def metadata(self, fields: Sequence[dict[str, Any]], **configuration: str) -> dict[str, Any]:
        schema = json.dumps({"type": "struct", "fields": fields})
        partitions = [field["name"] for field in fields if field.pop("partition", False)]
        about = {"id": str(uuid.uuid4()), "format": {"provider": "parquet", "options": {}}, "createdTime": 1}
        of_table = {"schemaString": schema, "partitionColumns": partitions, "configuration": configuration}
        return {"metaData": {**about, **of_table}}

    def add(self, name: str, rows: pa.Table | None = None, deleted: Sequence[int] = (), inline: bool = True,
            **partition: str | None) -> dict[str, Any]:  # fmt: skip
        """The action that adds a file, written where its rows are given; with a vector, in the log or beside."""
        path = self.folder / unquote(name)
        if rows is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(rows, path)
        action = {"path": name, "partitionValues": partition, "size": path.stat().st_size, "modificationTime": 1,
                  "dataChange": True, "stats": json.dumps({"numRecords": pq.read_metadata(path).num_rows})}  # fmt: skip
        return {"add": {**action, **({"deletionVector": self._vector(deleted, inline)} if deleted else {})}}

    def remove(self, added: Mapping[str, Any]) -> dict[str, Any]:
        """The action that takes back one that added a file."""
        of_file = {name: value for name, value in added["add"].items() if name in ("path", "deletionVector")}
        return {"remove": {**of_file, "dataChange": True, "deletionTimestamp": 1, "extendedFileMetadata": False}}

    def _vector(self, rows: Sequence[int], inline: bool) -> dict[str, Any]:
        vector = struct.pack("<iqi", 1681511377, 1, 0) + BitMap(rows).serialize()
        about = {"sizeInBytes": len(vector), "cardinality": len(rows)}
        if inline:
            return {"storageType": "i", "pathOrInlineDv": _z85(vector), **about}
        name = uuid.uuid4()
        content = b"\x01" + struct.pack(">i", len(vector)) + vector + struct.pack(">I", zlib.crc32(vector))
        (self.folder / f"deletion_vector_{name}.bin").write_bytes(content)
        return {"storageType": "u", "pathOrInlineDv": _z85(name.bytes), "offset": 1, **about}


NAMES = ("documents", "queries", "candidates")


@dataclass(frozen=True)
class Copy:
    """A lake's tables of 30 documents in another format; those of `documents` have been overwritten, merged, deleted
    and had their columns renamed before they were what they are."""

    folder: Path
    iceberg: IcebergLake

    def rows(self, name: str) -> pa.Table:
        return pq.read_table(self.folder / f"{name}.parquet")

    def documents(self) -> tuple[pa.Table, pa.Table, pa.Table]:
        """All as they are to be, twenty as they were with three that are deleted later, and those merged into them."""
        documents = self.rows("documents").select(["doc_id", "text"])
        documents = documents.append_column("lang", pa.array([f"l {row % 3}" for row in range(30)]))
        gone = [{"doc_id": f"x{number}", "text": "deleted", "lang": "l 1"} for number in (1, 2, 3)]
        stale = documents.slice(10, 10).set_column(1, "text", pa.array(["stale"] * 10))
        old = [documents.slice(0, 10), stale, pa.Table.from_pylist(gone, schema=documents.schema)]
        return documents, pa.concat_tables(old), documents.slice(10, 10)


class IcebergCopy(Copy):
    """In a catalog."""

    def write(self) -> Tables:
        for name in NAMES[1:]:
            self.iceberg.create(name, self.rows(name))
        documents, old, merged = self.documents()
        old, merged = (rows.rename_columns(["sku", "text", "lang"]) for rows in (old, merged))
        table = self.iceberg.create("documents", old.slice(0, 3), partition="lang")
        table.overwrite(old)
        table.upsert(merged, ["sku"])
        with table.update_schema() as schema:
            schema.rename_column("sku", "doc_id")
        table.append(documents.slice(20))
        self.iceberg.delete_rows("documents", ["x1"])
        self.iceberg.delete_rows("documents", ["x2"], vector=True)
        self.iceberg.table("documents").delete("doc_id = 'x3'")
        return Tables(*(f"iceberg://lake/db.{name}" for name in NAMES))

    def compact(self) -> None:
        table = self.iceberg.table("documents")
        table.overwrite(table.scan().to_arrow())

    def change(self) -> None:
        """Everything changes: rows go, others come, and the files are written anew."""
        table = self.iceberg.table("documents")
        table.overwrite(table.scan().to_arrow().slice(0, 5))
        self.iceberg.table("queries").delete("query_id = 'q01'")
        self.iceberg.table("candidates").delete("query_id = 'q02'")

    def expire(self) -> None:
        table = self.iceberg.table("documents")
        current = {task.file.file_path.removeprefix("file://") for task in table.scan().plan_files()}
        for file in Path(self.iceberg.folder, "warehouse", "db", "documents", "data").rglob("*.parquet"):
            if str(file) not in current and not file.name.endswith("-deletes.parquet"):  # which pyiceberg keeps
                file.unlink()


class DeltaCopy(Copy):
    """As deltalake writes it."""

    def write(self) -> Tables:
        for name in NAMES[1:]:
            write_deltalake(self.place(name), self.rows(name))
        self.write_documents(self.place("documents"))
        return Tables(*(f"delta+{self.place(name)}" for name in NAMES))

    def place(self, name: str) -> Path:
        return self.folder / f"{name}-delta"

    def write_documents(self, folder: Path) -> None:
        documents, old, merged = self.documents()
        write_deltalake(folder, old.slice(0, 3), partition_by=["lang"])
        write_deltalake(folder, old, mode="overwrite")
        write_deltalake(folder, documents.slice(20), mode="append")
        merge = DeltaTable(folder).merge(merged, "t.doc_id = s.doc_id", source_alias="s", target_alias="t")
        merge.when_matched_update_all().execute()
        DeltaTable(folder).delete("doc_id in ('x1', 'x2')")
        DeltaTable(folder).delete("doc_id = 'x3'")

    def compact(self) -> None:
        DeltaTable(self.place("documents")).optimize.compact()

    def change(self) -> None:
        """Everything changes: the files are written anew, rows go."""
        self.compact()
        DeltaTable(self.place("documents")).delete("doc_id > 'd05'")
        DeltaTable(self.place("queries")).delete("query_id = 'q01'")
        DeltaTable(self.place("candidates")).delete("query_id = 'q02'")

    def expire(self) -> None:
        table = DeltaTable(self.place("documents"))
        table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)


class MappedDeltaCopy(DeltaCopy):
    """The documents with deletion vectors and a renamed column, as Spark writes them."""

    def place(self, name: str) -> Path:
        return self.folder / f"{name}-{'mapped' if name == 'documents' else 'delta'}"

    def write_documents(self, folder: Path) -> None:
        log, (documents, old, merged) = DeltaLog(folder), self.documents()
        old, new, merged = (_physical(rows) for rows in (old, documents.slice(20), merged))
        fields = [field("doc_id", physical="sku", number=1), field("text", physical="c2", number=2)]
        first, again = log.add("a.parquet", old.slice(0, 3)), log.add("b.parquet", old, [20])
        mapping = {"delta.columnMapping.mode": "name"}
        log.commit(log.protocol("columnMapping", "deletionVectors"), log.metadata(fields, **mapping), first)
        log.commit(log.remove(first), again, log.add("c.parquet", new))
        log.commit(log.remove(again), last := log.add("b.parquet", None, range(10, 22), inline=False),
                   log.add("d.parquet", merged))  # fmt: skip
        log.commit(log.remove(last), log.add("b.parquet", None, range(10, 23)))

    def compact(self) -> None:
        self.replace(self.documents()[0])

    def replace(self, documents: pa.Table) -> None:
        log = DeltaLog(self.place("documents"))
        lines = (line for file in log.folder.glob("_delta_log/*.json") for line in file.read_text().splitlines())
        added = [action for action in map(json.loads, lines) if "add" in action]
        log.commit(*map(log.remove, added), log.add("e.parquet", _physical(documents)))

    def change(self) -> None:
        self.replace(self.documents()[0].slice(0, 5))
        DeltaTable(self.place("queries")).delete("query_id = 'q01'")
        DeltaTable(self.place("candidates")).delete("query_id = 'q02'")

    def expire(self) -> None:
        for name in "abcd":
            (self.place("documents") / f"{name}.parquet").unlink()


def _physical(documents: pa.Table) -> pa.Table:
    return documents.select(["doc_id", "text"]).rename_columns(["sku", "c2"])


COPIES: dict[str, type[Any]] = {"iceberg": IcebergCopy, "delta": DeltaCopy, "mapped-delta": MappedDeltaCopy}


def rows_read(address: str, columns: Mapping[str, str] | None = None, storage: Storage | None = None) -> pa.Table:
    """A table's documents as every command reads them."""
    schema = DOCUMENTS
    storage = storage or Storage(columns={address: columns} if columns else None)
    batches = [
        batch
        for fragment in fragments(storage, address, schema)
        for *_, batch in read_table_file(storage, fragment.file, schema)
    ]
    rows = pa.Table.from_batches(batches) if batches else schema.empty_table()
    return rows.set_column(rows.schema.get_field_index("text"), "text", rows["text"].cast(pa.string()))


def by_id(rows: pa.Table) -> dict[str, str | None]:
    """Texts by document."""
    return dict(sorted(zip(rows["doc_id"].to_pylist(), rows["text"].to_pylist(), strict=True)))


def field(name: str, kind: Any = "string", physical: str | None = None, number: int = 0, **more: Any) -> dict[str, Any]:
    """A column of a Delta schema; with the name and the number that its files have it by."""
    mapped = {"delta.columnMapping.id": number, "delta.columnMapping.physicalName": physical} if physical else {}
    return {"name": name, "type": kind, "nullable": True, "metadata": mapped, **more}


def _z85(content: bytes) -> str:
    padded = content + bytes(-len(content) % 4)
    return "".join(map(_z85_word, (padded[at : at + 4] for at in range(0, len(padded), 4))))


def _z85_word(word: bytes) -> str:
    number = int.from_bytes(word, "big")
    return "".join(_Z85[number // 85**power % 85] for power in range(4, -1, -1))
