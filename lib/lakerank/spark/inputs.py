"""Frames a plan is made from: candidates, and what is scored already. Keys only."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from lakerank.lake.score_files import TornUnit, finished_units, read_unit
from lakerank.lake.storage import Storage
from lakerank.lake.tables import Fragment, read_table_file
from lakerank.records import TRANSIENT_REASONS
from lakerank.schemas import CANDIDATES
from lakerank.spark.frames import parallelism, scatter
from lakerank.spark.pairs import stored_scores

logger = logging.getLogger(__name__)

_STORED = pa.schema(
    [("query_hash", pa.string()), ("doc_hash", pa.string()), ("unit", pa.string()), ("reason", pa.string())]
)


def read_candidates(spark: SparkSession, storage: Storage, files: Sequence[Fragment]) -> DataFrame:
    """Every listed pair. Columns: CANDIDATES."""
    pieces = [(f.file.uri, group) for f in files for group in range(f.row_groups)]

    def read(piece: tuple[str, int]) -> Iterator[pa.RecordBatch]:
        for _, _, batch in read_table_file(storage, piece[0], CANDIDATES, row_groups=[piece[1]]):
            yield batch

    schema = pa.schema([field.with_nullable(True) for field in CANDIDATES])
    return scatter(spark, pieces, read, schema, tasks=4 * parallelism(spark))


def read_stored(spark: SparkSession, storage: Storage, output: str, scorer: str) -> DataFrame | None:
    """What the scorer has scored before, as `stored_scores`; None when that is nothing. Torn files do not count."""
    names = sorted(finished_units(storage, output, scorer))
    if not names:
        return None

    def read(unit: str) -> Iterator[pa.RecordBatch]:
        try:
            rows = read_unit(storage, output, scorer, unit)
        except TornUnit as error:
            logger.warning("%s: its pairs are scored again", error)
            return
        keys = rows.select(["query_hash", "doc_hash", "reason"]).append_column("unit", pa.array([unit] * rows.num_rows))
        yield from keys.select(_STORED.names).cast(_STORED).to_batches()

    stored = scatter(spark, names, read, _STORED, tasks=4 * parallelism(spark))
    return stored_scores(stored, [reason.value for reason in TRANSIENT_REASONS])
