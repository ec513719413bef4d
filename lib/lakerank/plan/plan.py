"""A run's plan as stored in the lake: what it was made with, its counts, and its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from lakerank.cost import CostProfile, Sizing
from lakerank.credentials import redacted
from lakerank.duplicates.sketch import Likeness
from lakerank.errors import RunConflictError, SchemaError, StorageError
from lakerank.lake.blobs import ChangedFile
from lakerank.lake.formats import resolve
from lakerank.lake.formats.planned import SOURCES, source_rows, table_files
from lakerank.lake.ids import written_as
from lakerank.lake.runs import RunPaths, read_json
from lakerank.lake.scores import PlannedUnits, finished_units
from lakerank.lake.snapshot import TableFile, TableSnapshot
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import Fragment, fragments, parquet_bytes
from lakerank.limits import Listwise
from lakerank.schemas import CANDIDATES, DOCUMENTS, GROUP_IDS, QUERIES

#: Candidates that a task groups by document in one Arrow batch.
BATCH_ROWS = 2**20

#: Bytes and rows of a table file that one task indexes, about.
CHUNK_BYTES = 128 * 2**20
CHUNK_ROWS = 2**18

#: Tokens of a work unit by default, and of one for a GPU, about a minute's work each.
UNIT_TOKENS, GPU_UNIT_TOKENS = 2_000_000, 8_000_000

#: Rows of a row group in the files of a plan.
ROW_GROUP_ROWS = 100_000

#: The tables that a run reads, by the names of the fields of `Tables`.
TABLE_SCHEMAS = {"documents": DOCUMENTS, "queries": QUERIES, "candidates": CANDIDATES}


@dataclass(frozen=True, slots=True)
class Tables:
    """Addresses of the tables a run reads."""

    documents: str
    queries: str
    candidates: str


@dataclass(frozen=True, slots=True)
class PlanLimits:
    """How costs are estimated and units cut. `readings`: of all pairs, or of those of texts and those with an image.

    `unit_tokens`: size of a unit; None: what suits `device`, which scores. `task_pairs`: pairs of one part or
    partition, which a task has in memory, about; no result depends on it, nor on `encoder`: whose kept states of
    documents are used.
    """

    document: Sizing
    query: Sizing
    max_queries_per_group: int
    unit_tokens: int | None
    rows_per_file: int
    readings: tuple[CostProfile, ...] = (CostProfile(),)
    task_pairs: int = 2**19
    with_group_ids: bool = False  # whether the plan has the documents' group ids
    likeness: Likeness | None = None  # of near duplicates, whose clusters the plan has
    share: bool = False  # whether near duplicates share a score
    encoder: str | None = None
    listwise: Listwise | None = None  # of a stage that scores lists
    device: str = "cpu"

    def unit_size(self, on_gpu: bool) -> int:
        """Tokens of a unit, which a GPU would be through with before its queues are full."""
        return self.unit_tokens or (GPU_UNIT_TOKENS if on_gpu else UNIT_TOKENS)

    def identity(self) -> dict[str, Any]:
        """The limits that a plan's results depend on: their names and values are part of stored fingerprints."""
        unnamed = ("task_pairs", "with_group_ids", "encoder", "device")
        values = {name: value for name, value in asdict(self).items() if name not in unnamed}
        values["unit_tokens"] = self.unit_size(on_gpu=False)  # of what is left to the device, the same for all
        for sizing in (values["document"], values["query"]):
            if not sizing["all_frames"]:
                del sizing["all_frames"]  # limits of earlier plans had none
        if self.likeness is None:
            del values["likeness"], values["share"]
        if self.listwise is None:
            del values["listwise"]
        return values


@dataclass(frozen=True, slots=True)
class Plan:
    """The content of plan.json. Counts are of distinct pairs, costs in tokens.

    `shared`: of the reused pairs those that get the score of a new one, whose contents are the same.
    `near`: of the reused pairs those that get the score of a near duplicate.
    `lists`: of a stage that scores lists, each of some contents once; `reused_lists` of them have scores.
    `dropped`: candidates of the last published run that are no longer listed; `dropped_from`: its `run_id` and number
    of `candidates`, None where they are not known. `cost`, `patches`, `fetch_bytes` (text and images of the documents,
    as they are stored) and `read_bytes` (of the row groups they are in) are of the new pairs. `bits`: pairs are in
    2^bits parts by document id. `unit_counts`: how many units each list of units names.
    `id_types`: of `query_id`, `doc_id` and, in a plan with group ids, `group_id`, as the tables have them.
    `instructed`: rows of queries with an instruction.
    `first_queries` and `boundaries`: first query of each ranked file but the first, by number and by id.
    """

    attempt: str
    scorer: str
    made_from: str
    candidates: int
    duplicates: int
    new: int
    reused: int
    rejected: int
    dropped: int
    documents: int
    new_documents: int
    queries_listed: int
    cost: int
    pairwise_cost: int
    patches: int
    fetch_bytes: int
    read_bytes: int
    largest_unit: int
    bits: int
    unit_counts: tuple[int, ...]
    first_queries: tuple[int, ...]
    boundaries: tuple[str, ...]
    inputs: Mapping[str, Any]
    dropped_from: Mapping[str, Any] | None = None
    id_types: Mapping[str, str] = field(default_factory=dict)
    instructed: int = 0
    shared: int = 0
    near: int = 0
    lists: int = 0
    reused_lists: int = 0

    @property
    def units(self) -> int:
        """How many work units there are."""
        return sum(self.unit_counts)


def plan_folder(paths: RunPaths, attempt: str) -> str:
    """The folder of a planning attempt; only the attempt that plan.json names counts."""
    return join(paths.plan, attempt)


def sources_address(paths: RunPaths, attempt: str) -> str:
    """The file that says how the files of the plan's tables are read."""
    return join(plan_folder(paths, attempt), "sources.parquet")


def planned_units(storage: Storage, paths: RunPaths, plan: Plan) -> PlannedUnits:
    """Names of the plan's units, in file order."""
    return PlannedUnits(storage, plan_folder(paths, plan.attempt), plan.unit_counts)


def load_plan(storage: Storage, paths: RunPaths) -> Plan | None:
    """The plan of a run, or None if it has not been planned.

    Raises:
        StorageError: the file is not a plan of this version of lakerank.
    """
    values = read_json(storage, paths.plan_file)
    if values is None:
        return None
    lists: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        return Plan(**lists)
    except TypeError as error:
        raise StorageError(
            f"{paths.plan_file}: written by another version of lakerank; use another --run-id"
        ) from error


def check_tables(storage: Storage, tables: Tables, with_group_ids: bool = False) -> None:
    """Check that each table is there with its columns. Reads only footers, and of table formats only metadata.

    Raises:
        SchemaError, StorageError: it is not, or a file cannot be read.
    """
    for name, address in asdict(tables).items():
        fragments(storage, address, TABLE_SCHEMAS[name], whole=lambda file: True)
    if with_group_ids:
        group_id_type(storage, resolve(storage, tables.documents))


def group_id_type(storage: Storage, documents: TableSnapshot) -> str:
    """The type of group ids in the lists. Raises SchemaError: no file of the documents has them."""
    files = fragments(storage, documents, GROUP_IDS, whole=lambda file: True)
    if files and all(pa.types.is_null(fragment.id_type) for fragment in files):
        raise SchemaError(
            f"{redacted(documents.address)}: no column 'group_id', which ranking.per_group needs; name the column in "
            "lake.columns.documents, or leave per_group out"
        )
    return written_as(fragment.id_type for fragment in files)


def check_scored(storage: Storage, paths: RunPaths, plan: Plan) -> None:
    """Check that every unit of a plan has its scores.

    Raises:
        RunConflictError: some have none.
    """
    finished = finished_units(storage, paths.output, plan.scorer)
    missing = sum(unit not in finished for unit in planned_units(storage, paths, plan))
    if missing:
        raise RunConflictError(
            f"run {paths.run_id} has {missing:,} of {plan.units:,} units without scores: run --stage score first"
        )


def verify_plan_files(storage: Storage, paths: RunPaths, plan: Plan) -> None:
    """Raises StorageError when files of the plan have been deleted."""
    folder = join(plan_folder(paths, plan.attempt), "units")
    names = set(storage.list_names(folder))
    missing = sum(f"{unit}.parquet" not in names for unit in planned_units(storage, paths, plan))
    if missing:
        raise StorageError(f"{folder}: {missing} unit files are gone; use another --run-id")


def part_name(number: int) -> str:
    """The name of a numbered file."""
    return f"part-{number:05d}.parquet"


def read_part(storage: Storage, address: str, schema: pa.Schema) -> pa.Table:
    """A whole file of a plan or an index: the columns of the schema, null where an earlier version wrote none."""
    with storage.open_parquet(address) as parquet:
        stored = pa.schema([field for field in schema if field.name in parquet.schema_arrow.names])
        batches = storage.batches(address, parquet, batch_size=ROW_GROUP_ROWS, columns=stored.names)
        rows = pa.Table.from_batches(batches, schema=stored).combine_chunks()
    lacking = {field.name: pa.nulls(rows.num_rows, field.type) for field in schema if field.name not in stored.names}
    return with_columns(rows, schema, **lacking)


def write_part(storage: Storage, folder: str, number: int, rows: pa.Table) -> None:
    """Write a numbered file of a plan."""
    storage.replace(join(folder, part_name(number)), parquet_bytes(rows, ROW_GROUP_ROWS))


def with_columns(rows: pa.Table, schema: pa.Schema, **columns: pa.Array | pa.ChunkedArray) -> pa.Table:
    """A table of a schema: the columns given, and the others from `rows`."""
    arrays = [columns[name] if name in columns else rows[name] for name in schema.names]
    return pa.Table.from_arrays(arrays, schema=schema)


def write_sources(storage: Storage, paths: RunPaths, attempt: str, inputs: Mapping[str, Sequence[Fragment]]) -> None:
    """Store how the tables' files are read, and their versions: workers read rows by them."""
    rows = [row for table, files in inputs.items() for row in source_rows(table, [fragment.file for fragment in files])]
    content = parquet_bytes(pa.Table.from_pylist(rows, schema=SOURCES), ROW_GROUP_ROWS)
    storage.replace(sources_address(paths, attempt), content)


def read_sources(storage: Storage, address: str) -> dict[str, dict[str, TableFile]]:
    """The planned files of each table by URI, without the deleted rows, which nothing refers to."""
    files: dict[str, dict[str, TableFile]] = {table: {} for table in TABLE_SCHEMAS}
    rows = read_part(storage, address, pa.schema([column for column in SOURCES if column.name != "deleted"]))
    for table, file in table_files(rows):
        files[table][file.uri] = file
    return files


def is_one_chunk(file: TableFile) -> bool:
    """Whether a file of a table format is indexed whole, so that its row groups need not be known."""
    return file.size <= CHUNK_BYTES and (file.rows or 0) <= CHUNK_ROWS


def planned_documents(storage: Storage, tables: Tables, paths: RunPaths, plan: Plan) -> list[Fragment]:
    """The planned files of the documents table, in the plan's order; files added since are left out.

    Raises:
        ChangedFile: one of them has been replaced, or is gone.
    """
    planned = read_sources(storage, sources_address(paths, plan.attempt))["documents"]
    listed = fragments(storage, tables.documents, DOCUMENTS, is_one_chunk)
    files = [fragment for fragment in listed if fragment.file.uri in planned]
    for fragment in files:
        if planned[fragment.file.uri].version != fragment.file.version:
            raise ChangedFile(fragment.file.uri, "replaced since the run was planned")
    if len(files) != plan.inputs["documents"]["files"]:
        raise ChangedFile(tables.documents, "files are gone since the run was planned")
    return files
