"""The tables that a first stage reads: queries as terms of a vocabulary, documents in chunks, other systems' lists."""

from __future__ import annotations

import itertools
import posixpath
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from lakerank.candidates.bm25 import Int32, split_terms
from lakerank.candidates.run_files import RunLine, best_items, no_known_query, read_run
from lakerank.ingest.rejects import RejectList, SourceFault, SourceReject
from lakerank.lake.columns import decode_text
from lakerank.lake.snapshot import TableFile
from lakerank.lake.storage import Storage
from lakerank.lake.tables import Fragment, read_table_file, table_reader
from lakerank.ranking import Int64

#: `search_text` is what a document is found by and the model does not read; where it is null, `text` is.
SEARCHED = pa.schema(
    [pa.field("doc_id", pa.string()), pa.field("text", pa.string()), pa.field("search_text", pa.string())]
)

_TEXTS = SEARCHED.remove(0)

#: A `text_prefix`, an instruction at the beginning of a query's text, is for the model: it is not searched for.
ASKED = pa.schema(
    [pa.field("query_id", pa.string()), pa.field("text", pa.string()), pa.field("text_prefix", pa.string())]
)

#: A chunk ends at so many bytes of text, decompressed, or documents.
CHUNK_BYTES = 2**25
CHUNK_ROWS = 500_000

#: An item of a list; `query` is the query's number among the sorted ids.
ITEMS = pa.schema([("query", pa.int32()), ("doc_id", pa.string()), ("score", pa.float64())])

_FOOTER_THREADS = 16


@dataclass(frozen=True, slots=True)
class Queries:
    """Q queries sorted by id: ids, and the numbers of each one's terms in the sorted vocabulary, flat with their ends.

    `without_terms` counts those that cannot be searched for, most often because they are images.
    """

    ids: tuple[str, ...]
    vocabulary: tuple[str, ...]
    terms: Int32
    ends: Int64
    without_terms: int

    def terms_of(self, number: int) -> Int32:
        """The terms of one query."""
        return self.terms[self.ends[number] : self.ends[number + 1]]


def read_queries(storage: Storage, files: Sequence[Fragment]) -> Queries:
    """The queries of a table; of rows that share an id the first counts. Raises SchemaError, StorageError."""
    texts: dict[str, str] = {}
    for fragment in files:
        for _, _, batch in read_table_file(storage, fragment.file, ASKED):
            rows = zip(*(column.to_pylist() for column in batch.columns), strict=True)
            for query_id, raw, prefix in rows:
                if query_id is not None:
                    texts.setdefault(query_id, searched_text(raw).removeprefix(prefix or ""))
    terms = {query_id: split_terms(texts[query_id]) for query_id in sorted(texts)}
    vocabulary = sorted(set(itertools.chain.from_iterable(terms.values())))
    numbers = {term: number for number, term in enumerate(vocabulary)}
    flat = np.fromiter((numbers[term] for of_query in terms.values() for term in of_query), np.int32)
    ends = np.cumsum([0, *map(len, terms.values())])
    return Queries(tuple(terms), tuple(vocabulary), flat, ends, sum(not of_query for of_query in terms.values()))


def searched_text(text: bytes | None, search_text: str | None = None) -> str:
    """The text that a row is found by; "" where there is none, or it is not UTF-8, which the reranker will reject."""
    if search_text is not None:
        return search_text
    try:
        return decode_text(text) or ""
    except UnicodeDecodeError:
        return ""


class Chunk(NamedTuple):
    """Consecutive row groups of a file of documents, and the bytes of their texts, decompressed."""

    file: TableFile
    groups: range
    bytes: int


def document_chunks(storage: Storage, files: Sequence[Fragment]) -> list[Chunk]:
    """A table of documents in chunks, by the footers of its files."""

    def chunks(fragment: Fragment) -> list[Chunk]:
        result, first, size, rows = [], 0, 0, 0
        with storage.open_parquet(fragment.file) as parquet:
            reader = table_reader(storage, fragment.file, parquet, _TEXTS)
            for group in range(fragment.row_groups):
                size += reader.bytes(group)[1]
                rows += parquet.metadata.row_group(group).num_rows
                if size >= CHUNK_BYTES or rows >= CHUNK_ROWS or group == fragment.row_groups - 1:
                    result.append(Chunk(fragment.file, range(first, group + 1), size))
                    first, size, rows = group + 1, 0, 0
        return result

    with ThreadPoolExecutor(_FOOTER_THREADS, "footers") as pool:
        return [chunk for of_file in pool.map(chunks, files) for chunk in of_file]


def chunk_documents(storage: Storage, chunk: Chunk, with_text: bool) -> Iterator[tuple[str, str]]:
    """The id and the searched text of each document of a chunk, or "" for all texts; rows without id are left out."""
    columns = SEARCHED.names if with_text else ["doc_id"]
    for _, _, batch in read_table_file(storage, chunk.file, SEARCHED, columns, row_groups=chunk.groups):
        for doc_id, *texts in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            if doc_id is not None:
                yield doc_id, searched_text(*texts) if texts else ""


@dataclass(frozen=True, slots=True)
class RunList:
    """The lists of a run file: its ITEMS, best first for each query, queries in order, and their lines."""

    name: str
    items: pa.Table
    lines: Int64

    def without(self, unknown: set[str], rejects: RejectList) -> RunList:
        """The same without documents that are not in the lake: their lines are rejects."""
        doc_ids = self.items["doc_id"].to_pylist()
        kept = np.array([doc_id not in unknown for doc_id in doc_ids], bool)
        for at in np.flatnonzero(~kept):
            detail = f"{doc_ids[at]} is not among the documents"
            rejects.add(SourceReject(self.name, SourceFault.DOCUMENT_NOT_FOUND, detail, int(self.lines[at])))
        return RunList(self.name, self.items.filter(pa.array(kept)), self.lines[kept])


def read_lists(storage: Storage, uri: str, queries: Queries, depth: int, rejects: RejectList) -> RunList:
    """The `depth` best items of each query of a run, in memory; lines of other queries are rejects.

    Raises:
        StorageError: there is no such file, or no line is of one of the queries.
    """
    name, numbers = posixpath.basename(uri), {query_id: number for number, query_id in enumerate(queries.ids)}
    best: dict[int, list[RunLine]] = {}
    for query_id, group in itertools.groupby(read_run(storage, uri), lambda line: getattr(line, "query_id", None)):
        number = numbers.get(query_id or "")
        if number is not None:
            lines = [line for line in group if isinstance(line, RunLine)]
            best[number] = best_items([*best.get(number, []), *lines], depth)
            continue
        for line in group:
            detail = f"{query_id} is not among the queries"
            if isinstance(line, RunLine):
                line = SourceReject(name, SourceFault.QUERY_NOT_FOUND, detail, line.line)
            rejects.add(line)
    if queries.ids and not best:
        raise no_known_query(uri, "lake.queries", queries.ids[0])
    rows = [(number, line) for number in sorted(best) for line in best[number]]
    columns = ([number for number, _ in rows], [line.doc_id for _, line in rows], [line.score for _, line in rows])
    arrays = [pa.array(column, kind) for column, kind in zip(columns, ITEMS.types, strict=True)]
    return RunList(
        name, pa.Table.from_arrays(arrays, schema=ITEMS), np.array([line.line for _, line in rows], np.int64)
    )
