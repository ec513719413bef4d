"""The tasks of a first stage, whoever runs them.

*index* writes the postings of the queries' terms, a file a chunk of documents; *search* searches a chunk with
statistics of all; *merge* fuses the best of all chunks with the lists of run files, a file a range of queries.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from lakerank.candidates.bm25 import K1, POSTINGS, B, PostingsBuilder, PostingsIndex, Statistics
from lakerank.candidates.fusion import best_of, candidates, filled, fuse
from lakerank.candidates.inputs import ITEMS, Chunk, Queries, chunk_documents
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import parquet_bytes, read_table_file
from lakerank.runner import histogram, one_row, pack, totals
from lakerank.schemas import CANDIDATES

#: Rows of a file of candidates, about: up to so many, a table is one file and replaced in one step.
FILE_ROWS = 4_000_000
ROW_GROUP_ROWS = 2**17

#: Ids in the summary of queries without candidates.
NAMED_QUERIES = 5

#: What searching hands to merging.
HITS = 0
KINDS = {HITS: ITEMS}

#: Of a written file; `missing` counts its queries without candidates, `named` are the first of them, as JSON.
REPORT = pa.schema([
    ("part", pa.int64()), ("rows", pa.int64()), ("missing", pa.int64()), ("named", pa.string()),
])  # fmt: skip


@dataclass(frozen=True, slots=True)
class Options:
    """How candidates are found: by a method, in run files, or both. `rrf_k` is fusion's k; `k1` and `b` are BM25's.

    In a lake of up to `fill_pairs` pairs all other documents follow each list of BM25, without a score.
    """

    method: Literal["bm25", "all-pairs", "none"] = "bm25"
    runs: tuple[str, ...] = ()
    depth: int = 100
    rrf_k: float = 60.0
    k1: float = K1
    b: float = B
    max_pairs: int = 1_000_000
    fill_pairs: int = 0

    def faults(self) -> list[str]:
        """What cannot go together."""
        if self.method == "none" and not self.runs:
            return ["--method none: without a method, candidates come from run files: give --run FILE"]
        if self.method == "all-pairs" and self.runs:
            return ["--method all-pairs: all documents are candidates already; leave out --run"]
        return []


@dataclass(frozen=True, slots=True)
class Search:
    """What every task needs; `work` is a folder for what tasks hand each other."""

    storage: Storage
    queries: Queries
    chunks: Sequence[Chunk]
    options: Options
    work: str
    listed: Sequence[str] = ()  # documents of run files, sorted
    statistics: Statistics | None = None
    lists: int = 0  # run files

    @property
    def queries_per_file(self) -> int:
        return max(1, FILE_ROWS // self.options.depth)

    @property
    def parts(self) -> range:
        return range(-(-len(self.queries.ids) // self.queries_per_file))

    def postings_file(self, number: int) -> str:
        return join(self.work, f"postings-{number:06d}.parquet")

    def list_file(self, number: int, part: int) -> str:
        return join(self.work, f"list-{number:03d}-{part:06d}.parquet")

    def part_file(self, part: int) -> str:
        return join(self.work, f"part-{part:06d}.parquet")

    def index(self, number: int) -> Iterator[pa.RecordBatch]:
        """Write the postings of a chunk; yields COUNTS."""
        vocabulary = {term: at for at, term in enumerate(self.queries.vocabulary)}
        builder, listed = PostingsBuilder(vocabulary), {doc_id: at for at, doc_id in enumerate(self.listed)}
        is_searched, count, known = self.options.method == "bm25", 0, set[int]()
        for doc_id, text in chunk_documents(self.storage, self.chunks[number], is_searched):
            count += 1
            builder.add(doc_id, text)
            if doc_id in listed:
                known.add(listed[doc_id])
        yield totals({"documents": count, "searchable": builder.documents, "length": builder.length})
        yield histogram("listed", np.array(sorted(known), np.int64))
        if is_searched:
            postings = builder.finish()
            self.storage.replace(self.postings_file(number), parquet_bytes(postings, ROW_GROUP_ROWS))
            yield histogram("term", postings["terms"].combine_chunks().flatten().to_numpy())

    def search(self, number: int) -> Iterator[pa.RecordBatch]:
        """The best of a chunk for each query, as BATCHES by file of queries."""
        if self.statistics is None:
            return
        index = PostingsIndex(self._read(self.postings_file(number), POSTINGS), self.statistics)
        doc_ids = pa.array(index.doc_ids, pa.string())
        for part in self.parts:
            hits = [(q, *index.search(self.queries.terms_of(q), self.options.depth)) for q in self.queries_of(part)]
            queries = np.repeat(np.array([query for query, *_ in hits], np.int32), [len(at) for _, at, _ in hits])
            at = np.concatenate([at for _, at, _ in hits])
            scores = np.concatenate([scores for *_, scores in hits])
            items = pa.Table.from_arrays(
                [pa.array(queries), doc_ids.take(pa.array(at)), pa.array(scores)], schema=ITEMS
            )
            yield from pack(HITS, np.full(len(queries), part), items)

    def merge(self, part: int, tables: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        """Fuse the hits of a file of queries with the lists of run files and write it; yields its report."""
        depth = self.options.depth
        lists = [best_of(tables[HITS], depth)] if self.options.method == "bm25" else []
        lists += [self._read(self.list_file(number, part), ITEMS) for number in range(self.lists)]
        items = lists[0] if len(lists) == 1 else fuse(lists, self.options.rrf_k)
        yield self.write(part, candidates(items, self.queries.ids, depth))

    def merge_lists(self, part: int) -> Iterator[pa.RecordBatch]:
        """The same for a file of queries that have no hit."""
        return self.merge(part, {HITS: ITEMS.empty_table()})

    def write(self, part: int, rows: pa.Table) -> pa.RecordBatch:
        """Write the candidates of a file of queries; returns its report."""
        if len(rows):
            self.storage.replace(self.part_file(part), parquet_bytes(rows, ROW_GROUP_ROWS))
        having = set(rows["query_id"].unique().to_pylist())
        missing = [self.queries.ids[query] for query in self.queries_of(part) if self.queries.ids[query] not in having]
        return one_row(REPORT, part, len(rows), len(missing), json.dumps(missing[:NAMED_QUERIES]))

    def queries_of(self, part: int) -> range:
        """The numbers of the queries of a file."""
        first = part * self.queries_per_file
        return range(first, min(first + self.queries_per_file, len(self.queries.ids)))

    def fill(self, part: int, doc_ids: Sequence[str], is_written: bool) -> pa.RecordBatch:
        """Write a file of queries anew, the other documents after each list of BM25; returns its report."""
        rows = CANDIDATES.empty_table()
        if is_written:
            rows = pa.Table.from_batches(self.storage.batches(self.part_file(part)), CANDIDATES)
        ids = [self.queries.ids[query] for query in self.queries_of(part)]
        return self.write(part, filled(rows, ids, doc_ids, ranked=self.options.method == "bm25"))

    def _read(self, uri: str, schema: pa.Schema) -> pa.Table:
        return pa.Table.from_batches((batch for *_, batch in read_table_file(self.storage, uri, schema)), schema)
