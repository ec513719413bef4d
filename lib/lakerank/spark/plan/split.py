"""Split: pairs and stored scores meet in partitions of neighbouring documents; new pairs become document groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession

from lakerank.lake.storage import Storage, join
from lakerank.plan.pairs import PAIRS
from lakerank.plan.partitions import DOCUMENT_PAIRS, PAIR, SCORE, SPLIT_RECORDS, Partitions, Splitter
from lakerank.plan.plan import read_part, write_part
from lakerank.spark.plan.counts import COUNTS, Counts, summed, totals
from lakerank.spark.runtime.frames import scatter
from lakerank.spark.runtime.shuffle import BATCHES, exchange, pack


def pair_records(spark: SparkSession, storage: Storage, folder: str, partitions: Partitions) -> DataFrame:
    """The pairs of a plan folder's `pairs/` as PAIR records, packed for partitions."""
    pairs = join(folder, "pairs")

    def read(name: str) -> Iterator[pa.RecordBatch]:
        rows = read_part(storage, join(pairs, name), PAIRS).drop_columns(["doc_id"])  # in the order of documents
        yield from pack(PAIR, partitions.of(rows["document"].to_numpy()), rows.cast(DOCUMENT_PAIRS))

    return scatter(spark, storage.list_names(pairs), read, BATCHES)


@dataclass(frozen=True, slots=True)
class Split:
    """Splits the pairs of a partition: new ones go to `groups/`, scored ones to `reused/`, a file a partition."""

    storage: Storage
    folder: str
    splitter: Splitter

    def run(self, records: Sequence[DataFrame], partitions: int) -> Counts:
        """Split all partitions.

        Args:
            records: frames of PAIR and SCORE records.

        Returns:
            Totals, the `cost` of each partition's groups, and (under "unit …") the units whose scores are reused.
        """
        return summed(exchange(records, partitions, SPLIT_RECORDS, self._split, COUNTS))

    def _split(self, number: int, records: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        split = self.splitter.split(records[PAIR], records[SCORE])
        for name, table in (("groups", split.groups), ("reused", split.reused)):
            if table.num_rows:
                write_part(self.storage, join(self.folder, name), number, table)
        yield totals(split.totals)
        yield totals({"cost": pc.sum(split.groups["cost"]).as_py() or 0}, number)
        yield totals({f"unit {unit}": 1 for unit in pc.unique(split.reused["unit"]).to_pylist()})
