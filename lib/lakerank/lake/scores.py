"""Scores as they lie in the lake: one immutable file a work unit, named by what it holds the scores of."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from lakerank.errors import SchemaError, StorageError
from lakerank.fingerprint import sequence_hash
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import parquet_bytes
from lakerank.schemas import SCORES

_SUFFIX = ".parquet"
_UNIT_KEY = "lakerank.unit"
_SCORER_KEY = "lakerank.scorer"
_ROWS_KEY = "lakerank.rows"
_ROW_GROUP_ROWS = 65_536
_ORDER = ("doc_id", "query_id", "doc_hash", "query_hash")


class TornUnit(StorageError):
    """A unit file is not whole, or not what its name says."""


def unit_name(pairs: Iterable[tuple[str, str, str, str]]) -> str:
    """Name of a work unit: a hash of its (query_id, doc_id, query_hash, doc_hash), whatever their order."""
    return sequence_hash(sorted(pairs))


def scores_folder(output: str, scorer: str) -> str:
    """The folder of one scorer's unit files."""
    return join(output, "scores", f"scorer={scorer}")


def unit_address(output: str, scorer: str, unit: str) -> str:
    """The file that holds a unit's scores."""
    return join(scores_folder(output, scorer), f"{unit}{_SUFFIX}")


def write_unit(storage: Storage, output: str, scorer: str, unit: str, rows: pa.Table) -> bool:
    """Write a unit's scores (schemas.SCORES, in any order) unless they are there; False when they were.

    Same rows, same bytes: a twin task that comes second changes nothing.

    Raises:
        SchemaError: the rows are not of schemas.SCORES.
    """
    uri = unit_address(output, scorer, unit)
    try:
        table = rows.select(SCORES.names).cast(SCORES)
    except (KeyError, ValueError, pa.ArrowNotImplementedError) as error:
        raise SchemaError(f"{uri}: rows to be written are not scores: {error}") from error
    ordered = table.sort_by([(name, "ascending") for name in _ORDER])
    metadata = {_UNIT_KEY: unit, _SCORER_KEY: scorer, _ROWS_KEY: str(ordered.num_rows)}
    return storage.create(uri, parquet_bytes(ordered, _ROW_GROUP_ROWS, metadata))


def read_unit(storage: Storage, output: str, scorer: str, unit: str) -> pa.Table:
    """A unit's scores, (doc_id, query_id) ascending, as schemas.SCORES.

    Raises:
        TornUnit: the file is truncated or damaged, of another schema, or of another unit or scorer.
        StorageError: the file cannot be read.
    """
    uri = unit_address(output, scorer, unit)
    data = storage.read_bytes(uri)
    try:
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as parquet:
            table = parquet.read()
    except (pa.ArrowException, OSError) as error:
        raise _torn(uri, f"not a whole Parquet file: {error}") from error
    found = {key.decode(): value.decode("utf-8", "replace") for key, value in (table.schema.metadata or {}).items()}
    for key, expected in ((_UNIT_KEY, unit), (_SCORER_KEY, scorer), (_ROWS_KEY, str(table.num_rows))):
        if found.get(key) != expected:
            raise _torn(uri, f"{key} should be {expected} (found: {found.get(key)})")
    if not table.schema.equals(SCORES, check_metadata=False):
        raise _torn(uri, f"columns are not those of a score file (found: {', '.join(table.schema.names)})")
    return table.replace_schema_metadata(None)


def finished_units(storage: Storage, output: str, scorer: str) -> set[str]:
    """Names of the units whose scores are in the lake."""
    names = storage.list_names(scores_folder(output, scorer))
    return {name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)}


def _torn(uri: str, what: str) -> TornUnit:
    return TornUnit(
        f"{uri}: {what}; delete the file and run again (with another --run-id, if this run was to reuse it): its pairs "
        "are then scored anew"
    )
