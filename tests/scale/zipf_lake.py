"""A lake of any size: candidates by Zipf's law, one document that very many queries want, and a free scorer."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lakerank.audit import Bounds
from lakerank.cost import Sizing
from lakerank.lake.runs import RunPaths
from lakerank.plan.plan import PlanLimits, Tables
from lakerank.records import DocumentGroup, Reject, ScoredPair
from lakerank.rerank.publish import AuditRules
from lakerank.rerank.rank.write import RankRule
from lakerank.rerank.run import Rerank
from lakerank.rerank.stage import Stage

#: Queries that the most frequent document is a candidate of, where there are as many.
HOT_QUERIES = 100_000

_WORDS = ("relevance", "is", "judged", "once", "for", "every", "pair", "and", "kept", "until", "it", "changes")
_FILE_ROWS = 250_000


@dataclass
class FreeWork:
    """Nothing is computed."""

    computed: int = 0
    pairwise: int = 0


@dataclass
class FreeReranker:
    """Scores a pair by a checksum of its ids: what is measured is everything else."""

    counters: FreeWork = field(default_factory=FreeWork)

    def score_groups(self, groups: Iterable[DocumentGroup]) -> Iterator[ScoredPair | Reject]:
        """A logit between -4 and 4."""
        for group in groups:
            doc_id = group.document.doc_id
            start = zlib.crc32(doc_id.encode())
            for query in group.queries:
                logit = zlib.crc32(query.query_id.encode(), start) / 2**29 - 4
                yield ScoredPair(query.query_id, doc_id, logit, 5, 7, False, False)


@dataclass(frozen=True)
class FreeFactory:
    """Crosses to the worker."""

    def __call__(self, device: str) -> FreeReranker:
        """A reranker of no weight."""
        return FreeReranker()


def zipf_pairs(pairs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """About `pairs` distinct pairs of numbers (query, document): pairs / 10 of each, by query.

    A query's documents are drawn with probability 1 / rank. Document 0 is a candidate of HOT_QUERIES queries.
    """
    rng = np.random.default_rng(seed)
    queries = documents = max(10, pairs // 10)
    chances = np.cumsum(1 / np.arange(1, documents + 1))
    query = np.repeat(np.arange(queries, dtype=np.int64), 11)
    document = np.searchsorted(chances, rng.random(len(query)) * chances[-1])
    document = np.minimum(document, documents - 1).astype(np.int64)
    document[::11] = np.where(np.arange(queries) < HOT_QUERIES, 0, document[::11])
    # Popular documents should not all lie in the first file.
    places = rng.permutation(documents)
    keys = np.unique(query * documents + places[document])
    return keys // documents, keys % documents


def write_lake(folder: Path, pairs: int, seed: int = 0) -> int:
    """Write documents, queries and candidates; returns the number of candidates."""
    query, document = zipf_pairs(pairs, seed)
    rng = np.random.default_rng(seed + 1)
    count = max(10, pairs // 10)
    texts = [" ".join(_WORDS[i % len(_WORDS)] for i in range(size)) for size in range(10, 110)]
    _write(folder / "documents", "doc_id", [f"doc-{n:09d}" for n in range(count)], texts, rng.integers(0, 100, count))
    _write(folder / "queries", "query_id", [f"query-{n:08d}" for n in range(count)], texts, rng.integers(0, 10, count))
    (folder / "candidates").mkdir(parents=True, exist_ok=True)
    doc_ids = pa.array([f"doc-{n:09d}" for n in range(count)])
    query_ids = pa.array([f"query-{n:08d}" for n in range(count)])
    first = np.concatenate([[0], np.flatnonzero(np.diff(query)) + 1])
    rank = np.arange(len(query)) - np.repeat(first, np.diff(np.append(first, len(query)))) + 1
    for start in range(0, len(query), 1_000_000):
        rows = slice(start, start + 1_000_000)
        columns = {
            "query_id": query_ids.take(pa.array(query[rows])),
            "doc_id": doc_ids.take(pa.array(document[rows])),
            "first_stage_rank": pa.array(rank[rows].astype(np.int32)),
        }
        name = folder / "candidates" / f"part-{start // 1_000_000:04d}.parquet"
        pq.write_table(pa.table(columns), name, row_group_size=100_000, compression="zstd")
    return len(query)


def _write(folder: Path, id_column: str, ids: list[str], texts: list[str], chosen: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(ids), _FILE_ROWS):
        rows = slice(start, start + _FILE_ROWS)
        # The number in the text makes every content its own.
        text = [f"{ident} {texts[choice]}" for ident, choice in zip(ids[rows], chosen[rows].tolist(), strict=True)]
        table = pa.table({id_column: ids[rows], "text": text})
        pq.write_table(table, folder / f"part-{start // _FILE_ROWS:04d}.parquet", row_group_size=10_000)


def zipf_job(folder: Path, run_id: str) -> Rerank:
    """The job that reranks such a lake for nothing."""
    sizing = Sizing(3136, 602112, 10000)
    limits = PlanLimits(sizing, sizing, max_queries_per_group=512, unit_tokens=2_000_000, rows_per_file=1_000_000)
    return Rerank(
        paths=RunPaths(str(folder / "out"), run_id),
        tables=Tables(*(str(folder / name) for name in ("documents", "queries", "candidates"))),
        stages=(Stage("free", "", 1, 0.0, FreeFactory(), "cpu", limits),),
        rule=RankRule(logit_bias=0.0, thresholds=(0.5,), depth=None),
        audit=AuditRules(Bounds()),
        config_yaml="lake: {}\n",
    )
