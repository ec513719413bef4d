"""Rows of the lake's tables as an evaluation reads them: ids, scores, modalities and labels, without contents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce

import pyarrow as pa
import pyarrow.compute as pc

from lakerank import schemas
from lakerank.lake.columns import extra_fields, is_list
from lakerank.lake.snapshot import TableFile
from lakerank.lake.storage import Storage
from lakerank.lake.tables import TableReader, is_in, read_table_file, table_reader
from lakerank.ranking import Int64
from lakerank.schemas import CONTENT
from lakerank_evaluation.pairs import PAIR_COLUMNS, InputTable

#: Documents and their modality codes.
MODALITIES = pa.schema([pa.field("doc_id", pa.string()), pa.field("modality", pa.int8())])

_BATCH_ROWS = 1024

SCHEMAS = dict(zip(
    InputTable, (schemas.QUERIES, schemas.QRELS, schemas.CANDIDATES, schemas.RANKED, schemas.RANKED), strict=True
))  # fmt: skip


def table_rows(storage: Storage, table: InputTable, file: TableFile, row_group: int) -> Iterator[pa.RecordBatch]:
    """A row group of qrels, candidates or ranked lists with the columns of PAIR_COLUMNS, without rows that lack an id.

    Raises:
        SchemaError: a column is missing or of the wrong type.
        StorageError: the file cannot be read.
    """
    names = PAIR_COLUMNS[table].names
    for _, _, batch in read_table_file(storage, file, SCHEMAS[table], names, row_groups=[row_group]):
        yield batch.filter(pc.and_(batch["query_id"].is_valid(), batch["doc_id"].is_valid()))


def query_rows(storage: Storage, file: TableFile, row_group: int, labels: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The queries of a row group: their id, modality, and some extra columns as labels."""
    return (batch for _, batch in attribute_batches(storage, file, row_group, schemas.QUERIES, labels))


def document_modalities(storage: Storage, file: TableFile, row_group: int) -> Iterator[pa.RecordBatch]:
    """The modality of each document of a row group. Columns: MODALITIES."""
    for _, batch in attribute_batches(storage, file, row_group, schemas.DOCUMENTS, ()):
        yield batch.select(MODALITIES.names)


def attribute_batches(
    storage: Storage, file: TableFile, row_group: int, expected: pa.Schema, extras: Sequence[str]
) -> Iterator[tuple[Int64, pa.RecordBatch]]:
    """(numbers of the batch's rows (N,), batch) of a row group: the id, `modality`, and extra columns as strings.

    `modality` is a code of MODALITY_NAMES. An extra column that the file lacks or that is not text is null, and so are
    empty values. A null id is empty.
    """
    id_field = expected.field(0)
    with storage.open_parquet(file) as parquet:
        more = [field for field in extra_fields(file, parquet.schema_arrow, extras) if _is_text(field.type)]
        presences = _presences(table_reader(storage, file, parquet, _contents(expected)), row_group)
        unknown = [expected.field(name) for name, presence in presences.items() if presence is None]
        reader = table_reader(storage, file, parquet, pa.schema([id_field, *unknown, *more]))
        for numbers, batch in reader.rows(row_group, _BATCH_ROWS):
            rows = batch.num_rows
            has_text, *has_images = (
                _has_value(batch[name]) if presence is None else pa.repeat(presence, rows)
                for name, presence in presences.items()
            )
            image_code = pc.multiply(reduce(pc.or_, has_images).cast(pa.int8()), pa.scalar(2, pa.int8()))
            arrays = {id_field.name: pc.fill_null(batch[0], "")}
            arrays["modality"] = pc.add(has_text.cast(pa.int8()), image_code)
            present = {field.name for field in more}
            for name in extras:
                strings = batch[name].cast(pa.string()) if name in present else pa.nulls(rows, pa.string())
                arrays[name] = pc.if_else(pc.equal(strings, ""), pa.scalar(None, pa.string()), strings)
            yield numbers, pa.RecordBatch.from_pydict(arrays)


def known_modality(storage: Storage, file: TableFile, row_group: int) -> int | None:
    """The `modality` that all rows of a row group share by its statistics; None where they differ or must be read."""
    with storage.open_parquet(file) as parquet:
        reader = table_reader(storage, file, parquet, _contents(schemas.DOCUMENTS))
        text, *images = _presences(reader, row_group).values()
    image = True if any(images) else None if None in images else False
    return None if text is None or image is None else int(text) + 2 * int(image)


def _contents(expected: pa.Schema) -> pa.Schema:
    """The columns of content of documents or queries, the text first."""
    return pa.schema([expected.field(name) for name in CONTENT if name in expected.names])


def _has_value(column: pa.Array) -> pa.Array:
    """Whether rows have a value (N,); an empty list is none."""
    if not is_list(column.type):
        return column.is_valid()
    return pc.fill_null(pc.greater(pc.list_value_length(column), 0), False)


def _presences(reader: TableReader, group: int) -> dict[str, bool | None]:
    return {name: _presence(reader, group, name) for name in reader.located.schema.names}


def _presence(reader: TableReader, group: int, name: str) -> bool | None:
    """Whether all rows of a row group have a value (True), none has (False), or the column must be read (None)."""
    metadata, field = reader.parquet.metadata.row_group(group), reader.located.fields.get(name)
    if field is None:
        return reader.located.file.constants.get(name) is not None
    parts = [
        leaf for leaf in map(metadata.column, range(metadata.num_columns)) if is_in(leaf.path_in_schema, [field.name])
    ]
    statistics = parts[0].statistics if len(parts) == 1 else None
    nulls = statistics.null_count if statistics is not None and statistics.has_null_count else None
    return True if nulls == 0 else False if nulls is not None and nulls == parts[0].num_values else None


def _is_text(kind: pa.DataType) -> bool:
    return kind in (pa.string(), pa.large_string(), pa.string_view())
