"""What a lake says of its queries and documents besides their content, and where each one stands."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
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
    storage: Storage, uri: str, expected: pa.Schema, extras: Sequence[str], wanted: Collection[str] | None = None
) -> dict[str, Attributes]:
    """Attributes by id of the rows that are `wanted` (all by default). Of rows that share an id the first counts.

    Texts and images are only read where a row group's statistics do not say which rows have them.
    """
    id_column = expected.names[0]
    ids = None if wanted is None else pa.array(list(wanted), pa.string())
    found: dict[str, Attributes] = {}
    for fragment in fragments(storage, uri, expected):
        for group in range(fragment.row_groups):
            for first, batch in attribute_batches(storage, fragment.file.uri, group, expected, extras):
                places = pa.array(range(first, first + batch.num_rows))
                rows = pa.table({**{name: batch[name] for name in batch.schema.names}, "place": places})
                kept = rows if ids is None else rows.filter(pc.is_in(rows[id_column], value_set=ids))
                for row in kept.to_pylist():
                    extra = {name: row[name] for name in extras if row[name] is not None}
                    ref = BlobRef(fragment.file.uri, group, row["place"])
                    has = (bool(row["modality"] & 1), bool(row["modality"] & 2))
                    found.setdefault(row[id_column], Attributes(ref, *has, extra))
    return found


def attribute_batches(
    storage: Storage, uri: str, row_group: int, expected: pa.Schema, extras: Sequence[str]
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(row of the batch's first, batch) of a row group: the id, `modality`, and the extra columns as strings.

    `modality` is 1 for a text plus 2 for an image. An extra column that the file lacks, or that holds no text, is
    null, and so is an empty value. An id that is null is empty.
    """
    id_column = expected.names[0]
    with opened(storage, uri) as parquet:
        schema = parquet.schema_arrow
        texts = [name for name in extras if name in schema.names and _is_text(schema.field(name).type)]
        known = {name: _presence(parquet, row_group, name) for name in ("text", "image")}
        columns = [id_column, *texts, *(name for name, presence in known.items() if presence is None)]
        first = 0
        for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=[row_group], columns=columns):
            rows = batch.num_rows
            held = [
                batch[name].is_valid().cast(pa.int8())
                if presence is None
                else pa.array([int(presence)] * rows, pa.int8())
                for name, presence in known.items()
            ]
            arrays = {id_column: pc.fill_null(_strings(batch[id_column]), "")}
            arrays["modality"] = pc.add(held[0], pc.multiply(held[1], pa.scalar(2, pa.int8())))
            for name in extras:
                strings = _strings(batch[name]) if name in texts else pa.nulls(rows, pa.string())
                arrays[name] = pc.if_else(pc.equal(strings, ""), pa.scalar(None, pa.string()), strings)
            yield first, pa.RecordBatch.from_pydict(arrays)
            first += rows


def known_modality(storage: Storage, uri: str, row_group: int) -> int | None:
    """The `modality` of all rows of a row group by its statistics; None when its rows differ or must be read."""
    with opened(storage, uri) as parquet:
        text, image = (_presence(parquet, row_group, name) for name in ("text", "image"))
    return None if text is None or image is None else int(text) + 2 * int(image)


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


def _strings(column: pa.Array) -> pa.Array:
    """Values as strings; bytes that are not UTF-8 are replaced."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    raw = pc.cast(column, pa.binary())
    try:
        return pc.cast(raw, pa.string())
    except pa.ArrowInvalid:
        values = raw.to_pylist()
        return pa.array([None if one is None else one.decode(errors="replace") for one in values], pa.string())


def fetch_rows(
    storage: Storage, attributes: Mapping[str, Attributes], ids: Collection[str], id_column: str
) -> dict[str, Blob]:
    """The content of some rows by id, each row group read once."""
    wanted = sorted(
        ((one.ref.file, one.ref.row_group, one.ref.row), ident) for ident, one in attributes.items() if ident in ids
    )
    blobs = fetch(storage, [BlobRef(*ref) for ref, _ in wanted], id_column)
    return {ident: blob for (_, ident), blob in zip(wanted, blobs, strict=True)}
