"""Lookup: stored scores meet the run's documents by content, and go on to the partitions of those documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from lakerank.plan.index import QueryList, TableIndex
from lakerank.plan.lookup import (
    CONTENT_SCORES,
    DOCUMENT_CONTENTS,
    ScoreIndexer,
    ScoreLookup,
    document_contents,
    match_contents,
)
from lakerank.plan.pairs import key_hash, part_of
from lakerank.plan.partitions import SCORE, Partitions
from lakerank.spark.runtime.frames import describe_job, gather, parallelism, scatter
from lakerank.spark.runtime.shuffle import BATCHES, exchange, pack

_FILE = pa.schema([("file", pa.string())])

#: Record types of the lookup.
_SCORE, _DOCUMENT = 0, 1
_RECORDS = {_SCORE: CONTENT_SCORES, _DOCUMENT: DOCUMENT_CONTENTS}


def score_lookup(spark: SparkSession, indexer: ScoreIndexer) -> ScoreLookup:
    """A scorer's stored scores; missing index files are written first. Corrupt unit files do not count."""
    lookup, missing = indexer.missing()
    if not missing:
        return lookup

    def write(units: Sequence[str]) -> Iterator[pa.RecordBatch]:
        yield pa.RecordBatch.from_pydict({"file": [indexer.write(units)]}, schema=_FILE)

    describe_job(spark, f"plan: index the scores of {sum(map(len, missing))} units")
    written = gather(spark, missing, write, _FILE)["file"].drop_null().to_pylist()
    return replace(lookup, names=tuple(sorted({*lookup.names, *written})))


@dataclass(frozen=True, slots=True)
class Lookup:
    """Finds the stored scores of documents by content.

    Attributes:
        partitions: those that a document's scores go to.
        bits: contents meet in 2^bits parts.
    """

    scores: ScoreLookup
    documents: TableIndex
    queries: QueryList
    partitions: Partitions
    bits: int

    def records(self, spark: SparkSession) -> DataFrame:
        """Stored scores as SCORE records, packed for the partitions of the documents that have their content now."""
        scores = scatter(spark, self.scores.names, self._read_scores, BATCHES, tasks=8 * parallelism(spark))
        documents = scatter(spark, range(len(self.documents.chunks)), self._read_documents, BATCHES)
        return exchange([scores, documents], 2**self.bits, _RECORDS, self._match, BATCHES)

    def _read_scores(self, name: str) -> Iterator[pa.RecordBatch]:
        yield from self._packed_by_content(_SCORE, self.scores.read(name, self.queries))

    def _read_documents(self, chunk: int) -> Iterator[pa.RecordBatch]:
        yield from self._packed_by_content(_DOCUMENT, document_contents(self.documents, chunk))

    def _match(self, _: int, records: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        scores = match_contents(records[_SCORE], records[_DOCUMENT])
        yield from _packed_sorted(SCORE, self.partitions.of(scores["document"].to_numpy()), scores)

    def _packed_by_content(self, record_type: int, rows: pa.Table) -> Iterator[pa.RecordBatch]:
        rows = rows.combine_chunks()
        if rows.num_rows:
            coded = rows["doc_hash"].combine_chunks().dictionary_encode()
            parts = part_of(key_hash(coded.dictionary), self.bits)[coded.indices.to_numpy()]
            yield from _packed_sorted(record_type, parts, rows)


def _packed_sorted(record_type: int, parts: npt.NDArray[np.integer], rows: pa.Table) -> Iterator[pa.RecordBatch]:
    order = np.argsort(parts, kind="stable")
    yield from pack(record_type, parts[order], rows.take(pa.array(order)))
