"""Lists of a lake for people to look at: a few queries' ranked, rejected and first-stage documents, and their texts.

Only row groups that may have a wanted row are read, and of documents only the columns that are shown.
"""

from __future__ import annotations

import math
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lakerank import schemas
from lakerank.lake.blobs import NOWHERE, BlobRef
from lakerank.lake.columns import decode_text, extra_fields
from lakerank.lake.ids import is_text
from lakerank.lake.images.files import first_image
from lakerank.lake.publication import lists_folder
from lakerank.lake.runs import RunPaths
from lakerank.lake.snapshot import TableFile
from lakerank.lake.storage import Storage
from lakerank.lake.tables import TableReader, fragments, read_table_file, table_reader
from lakerank.records import RankedDocument, Reject, RejectReason

#: Characters of a text that are shown, and of a document those that are looked through for them.
SNIPPET, LOOKED_THROUGH = 400, 32_768

#: Characters within which a query's words are near each other, and by which a sentence may begin before them.
_NEAR, _BEFORE = 80, 20

#: A word, or a character of a script that is written without spaces, or, as Hangul, with particles.
_UNSPACED = r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
_SINGLE = re.compile(_UNSPACED)
_WORD = re.compile(rf"{_UNSPACED}|(?:(?!{_UNSPACED})[^\W_])+")

#: Columns of documents that ingestion writes about a file, where the table has them.
_ABOUT = ("path", "page", "title", "search_text")


@dataclass(frozen=True, slots=True)
class ShownQuery:
    """A query's id and the beginnings of its text and its instruction; "" for an image and for none."""

    query_id: str
    text: str
    instruction: str = ""


@dataclass(frozen=True, slots=True)
class ShownDocument:
    """Where a document is from, and what is looked through of its text; `image` only where it was asked for."""

    doc_id: str
    path: str | None = None
    page: int | None = None
    title: str | None = None
    text: str = ""
    image: bytes | None = None


def find_queries(storage: Storage, uri: str, words: str | None, most: int) -> list[ShownQuery]:
    """The first queries of a table that have an id or, in any order, all the words; without words the first of all."""
    queries = (
        ShownQuery(row["query_id"], snippet(row["text"]), snippet(row["instruction"]))
        for fragment in fragments(storage, uri, schemas.QUERIES)
        for *_, batch in read_table_file(storage, fragment.file, schemas.QUERIES, ["query_id", "text", "instruction"])
        for row in batch.to_pylist()
    )
    if words is None:
        return list(islice(queries, most))
    terms = words.casefold().split()
    matches: list[ShownQuery] = []
    for query in queries:
        if query.query_id == words:
            return [query]
        if len(matches) < most and all(term in query.text.casefold() for term in terms):
            matches.append(query)
    return matches


def ranked_lists(storage: Storage, paths: RunPaths, query_ids: Collection[str]) -> dict[str, list[RankedDocument]]:
    """The lists of some queries, by rank; a query that has none is left out."""
    lists: dict[str, list[RankedDocument]] = {}
    for row in rows_by_id(storage, lists_folder(storage, paths), schemas.RANKED, query_ids):
        lists.setdefault(row["query_id"], []).append(RankedDocument(**row))
    return {query_id: sorted(documents, key=lambda document: document.rank) for query_id, documents in lists.items()}


def rejected_lists(storage: Storage, paths: RunPaths, query_ids: Collection[str]) -> dict[str, list[Reject]]:
    """The candidates of some queries without a score, and why."""
    lists: dict[str, list[Reject]] = {}
    if storage.list_names(paths.rejected):  # a run without rejects may have no such folder
        for row in rows_by_id(storage, paths.rejected, schemas.REJECTED, query_ids):
            reject = Reject(row["query_id"], row["doc_id"], RejectReason(row["reason"]), row["detail"] or "")
            lists.setdefault(row["query_id"], []).append(reject)
    return lists


def first_stage_lists(storage: Storage, uri: str, query_ids: Collection[str]) -> dict[str, list[RankedDocument]]:
    """Some queries' candidates in the order of ranks, then of scores, each once; logit and relevance are NaN."""
    lists: dict[str, dict[str, tuple[float, float]]] = {}
    for row in rows_by_id(storage, uri, schemas.CANDIDATES, query_ids):
        rank, score = row["first_stage_rank"], row["first_stage_score"]
        unscored = score is None or math.isnan(score)
        place = math.inf if rank is None else rank, math.inf if unscored else -score
        documents = lists.setdefault(row["query_id"], {})
        documents[row["doc_id"]] = min(place, documents.get(row["doc_id"], place))
    return {
        query_id: [
            RankedDocument(query_id, doc_id, rank, math.nan, math.nan, 0, rank, False)
            for rank, doc_id in enumerate(sorted(documents, key=lambda doc_id: (documents[doc_id], doc_id)), start=1)
        ]
        for query_id, documents in lists.items()
    }


def shown_documents(
    storage: Storage, uri: str, doc_ids: Collection[str], images: bool = False
) -> dict[str, ShownDocument]:
    """Documents by id; of an id that the table lacks, the id alone."""
    documents: dict[str, ShownDocument] = {}
    columns = schemas.CONTENT if images else ["text"]
    for row in rows_by_id(storage, uri, schemas.DOCUMENTS, doc_ids, columns, _ABOUT):
        if row["doc_id"] in documents:
            continue
        path, page, title, search_text = (None if row.get(name) is None else str(row[name]) for name in _ABOUT)
        about = (path, int(page) if page and page.isdecimal() else None, title)
        raws = row["text"], (search_text or "").encode()
        text = next(filter(None, (snippet(raw, LOOKED_THROUGH) for raw in raws)), "")
        documents[row["doc_id"]] = ShownDocument(row["doc_id"], *about, text, first_image(storage, row))
    return {doc_id: documents.get(doc_id, ShownDocument(doc_id)) for doc_id in doc_ids}


def snippet(raw: bytes | None, most: int = SNIPPET) -> str:
    """The beginning of a text, in one line."""
    try:
        text = decode_text(raw[: 8 * most] if raw else raw)
    except UnicodeDecodeError:
        text = raw[: 8 * most].decode(errors="replace") if raw else None
    return " ".join((text or "").split())[:most]


def passage(text: str, query: str) -> str:
    """Of a text in one line the part where most different words of a query are near each other, the earliest of
    several; the beginning where none is, or where it has as many."""
    wanted = {word for _, word in _words(query)}
    hits = [(place, word) for place, word in _words(text) if word in wanted]
    places = [place for place, _ in hits]

    def worth(start: int) -> tuple[int, int]:
        near = {word for _, word in hits[bisect_left(places, start) : bisect_right(places, start + _NEAR)]}
        return len(near), sum(map(len, near))

    start = max([0, *places], key=worth)
    before = max(0, start - _BEFORE)
    sentences = [mark.end() for mark in re.finditer(r"[.!?] |[。！？]", text[before:start])]
    start = before + sentences[-1] if sentences else start if before else 0
    return f"{'… ' if start else ''}{text[start:]}"[:SNIPPET]


def _words(text: str) -> Iterator[tuple[int, str]]:
    """The words of a text and where they are: (place, word); in a script without spaces, pairs of characters."""
    matches = list(_WORD.finditer(text))
    for number, match in enumerate(matches, start=1):
        word, after = match[0], matches[number] if number < len(matches) else None
        if after and _SINGLE.fullmatch(word) and _SINGLE.fullmatch(after[0]) and after.start() == match.end():
            word += after[0]
        yield match.start(), unicodedata.normalize("NFKC", word).casefold()


def rows_by_id(
    storage: Storage,
    uri: str,
    schema: pa.Schema,
    ids: Collection[str],
    columns: Sequence[str] | None = None,
    extras: Sequence[str] = (),
) -> Iterator[dict[str, Any]]:
    """Rows whose id, in the schema's first column, is one of some; with extra columns that a file has, texts and whole
    numbers as they are: other people's of those names may be anything."""
    id_field, sorted_ids = schema.field(0), _sorted_ids(ids)
    wanted = pa.array(sorted_ids[str], pa.string())
    names = schema.names[1:] if columns is None else columns
    batch_rows = 64 if {"image", "images"} & {*names} else 8192  # images may have megabytes each
    for fragment in fragments(storage, uri, schema):
        with storage.open_parquet(fragment.file) as parquet:
            more = extra_fields(fragment.file, parquet.schema_arrow, extras)
            more = [field for field in more if is_text(field.type) or pa.types.is_integer(field.type)]
            keys = table_reader(storage, fragment.file, parquet, pa.schema([id_field]))
            kinds = pa.schema([id_field, *(schema.field(name) for name in names), *more])
            rows = table_reader(storage, fragment.file, parquet, kinds)
            for group in range(fragment.row_groups):
                if _may_hold(keys, group, sorted_ids) and any(
                    pc.any(pc.is_in(batch[0], value_set=wanted)).as_py() for _, batch in keys.rows(group, 8192)
                ):
                    for _, batch in rows.rows(group, batch_rows):
                        yield from batch.filter(pc.is_in(batch[0], value_set=wanted)).to_pylist()


def row_locations(
    storage: Storage, uri: str, schema: pa.Schema, ids: Collection[str]
) -> tuple[dict[str, BlobRef], dict[str, TableFile]]:
    """Where the rows of some ids are, NOWHERE if there is none, and their files by URI; reads a table's ids once."""
    places, files, sorted_ids = dict.fromkeys(ids, NOWHERE), {}, _sorted_ids(ids)
    for fragment in fragments(storage, uri, schema) if places else ():
        with storage.open_parquet(fragment.file) as parquet:
            keys = table_reader(storage, fragment.file, parquet, pa.schema([schema.field(0)]))
            for group in (group for group in range(fragment.row_groups) if _may_hold(keys, group, sorted_ids)):
                for rows, batch in keys.rows(group, 65_536):
                    for row, row_id in zip(rows.tolist(), batch[0].to_pylist(), strict=True):
                        if places.get(row_id) is NOWHERE:
                            places[row_id] = BlobRef(fragment.file.uri, group, row)
                            files[fragment.file.uri] = fragment.file
    return places, files


def _sorted_ids(ids: Collection[str]) -> dict[type, list[Any]]:
    """Ids by the types that statistics have them in: all of them as text, and those that are numbers of 64 bits."""
    digits = (text for text in ids if len(text) <= len(str(-(2**63))) and text.removeprefix("-").isdecimal())
    return {str: sorted(ids), int: sorted(map(int, digits))}


def _may_hold(reader: TableReader, group: int, ids: Mapping[type, Sequence[Any]]) -> bool:
    """Whether a row group's statistics leave open that it has one of some ids, the reader's only column."""
    metadata = reader.parquet.metadata.row_group(group)
    chunks = map(metadata.column, range(metadata.num_columns))
    statistics = next((c.statistics for c in chunks if [c.path_in_schema] == reader.located.columns), None)
    if statistics is None or not statistics.has_min_max or type(statistics.min) not in ids:
        return bool(ids[str])
    wanted = ids[type(statistics.min)]
    return bisect_left(wanted, statistics.min) < bisect_right(wanted, statistics.max)
