"""What a lake says of its queries and documents besides their content, and where each one stands."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lakerank.lake.blobs import Blob, BlobRef, fetch
from lakerank.lake.storage import Storage
from lakerank.lake.tables import fragments, opened

_BATCH_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Attributes:
    """Where a row stands, what it holds, and the values of its extra columns (those that are not null)."""

    ref: BlobRef
    has_text: bool
    has_image: bool
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def modality(self) -> str:
        """text, image, text+image or nothing."""
        parts = [name for name, held in (("text", self.has_text), ("image", self.has_image)) if held]
        return "+".join(parts) or "nothing"


def read_attributes(
    storage: Storage, uri: str, expected: pa.Schema, extras: Sequence[str], wanted: Container[str] | None = None
) -> dict[str, Attributes]:
    """Attributes by id of the rows that are `wanted` (all by default). Of rows that share an id the first counts.

    Texts and images are only read where a row group's statistics do not say which rows have them.
    """
    id_column = expected.names[0]
    found: dict[str, Attributes] = {}
    for fragment in fragments(storage, uri, expected):
        with opened(storage, fragment.file.uri) as parquet:
            for group in range(fragment.row_groups):
                for row, ident, attributes in _rows(parquet, fragment.file.uri, group, id_column, extras):
                    if (wanted is None or ident in wanted) and ident not in found:
                        ref = BlobRef(fragment.file.uri, group, row)
                        found[ident] = Attributes(ref, *attributes)
    return found


def _rows(
    parquet: pq.ParquetFile, uri: str, group: int, id_column: str, extras: Sequence[str]
) -> Iterator[tuple[int, str, tuple[bool, bool, dict[str, str]]]]:
    schema = parquet.schema_arrow
    texts = [name for name in extras if name in schema.names and _is_text(schema.field(name).type)]
    known = {name: _presence(parquet, group, name) for name in ("text", "image")}
    columns = [id_column, *texts, *(name for name, presence in known.items() if presence is None)]
    first = 0
    for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns):
        masks = {
            name: batch[name].is_valid().to_pylist() if presence is None else [presence] * batch.num_rows
            for name, presence in known.items()
        }
        values = {name: _strings(batch[name]) for name in (id_column, *texts)}
        for row in range(batch.num_rows):
            extra = {name: value for name in texts if (value := values[name][row])}
            yield first + row, values[id_column][row] or "", (masks["text"][row], masks["image"][row], extra)
        first += batch.num_rows


def _presence(parquet: pq.ParquetFile, group: int, name: str) -> bool | None:
    """Whether all rows of a row group have the column (True), none has (False), or it must be read to know (None)."""
    metadata = parquet.metadata.row_group(group)
    for index in range(metadata.num_columns):
        column = metadata.column(index)
        if column.path_in_schema == name:
            statistics = column.statistics
            if statistics is None or not statistics.has_null_count:
                return None
            nulls = statistics.null_count
            return True if nulls == 0 else False if nulls == metadata.num_rows else None
    return False


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _strings(column: pa.Array) -> list[str | None]:
    """Values as text; bytes that are not UTF-8 are replaced."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return [None if raw is None else raw.decode(errors="replace") for raw in pc.cast(column, pa.binary()).to_pylist()]


def fetch_rows(
    storage: Storage, attributes: Mapping[str, Attributes], ids: Container[str], id_column: str
) -> dict[str, Blob]:
    """The content of some rows by id, each row group read once."""
    wanted = sorted(
        ((one.ref.file, one.ref.row_group, one.ref.row), ident) for ident, one in attributes.items() if ident in ids
    )
    blobs = fetch(storage, [BlobRef(*ref) for ref, _ in wanted], id_column)
    return {ident: blob for (_, ident), blob in zip(wanted, blobs, strict=True)}
