"""Records, which are JSON objects or rows of CSV files, as rows of any table."""

from __future__ import annotations

import base64
import binascii
import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from io import BufferedIOBase
from typing import Any

from lakerank.ingest.lines import LineFault, Record, json_records, read_each, record_id, record_integer, record_number
from lakerank.ingest.lines import record_text as text_of
from lakerank.ingest.readers.reader import ReadOptions
from lakerank.ingest.rows import Metadata, content_rows, kept_fields
from lakerank.ingest.tables import ContentRow, Row, SourceFault, SourceReject, TableName
from lakerank.lake.lines import numbered_lines
from lakerank.records import Candidate, Qrel

#: Fields that may hold a value, by column; the first that exists counts.
QUERY_ID = ("query_id", "query-id", "qid")
DOC_ID = ("doc_id", "corpus_id", "corpus-id", "docid")
_OWN_ID = ("id", "_id")
_TEXT: Mapping[TableName, tuple[str, ...]] = {"documents": ("text",), "queries": ("text", "query", "question")}
_LANGUAGE = ("language", "lang")
_SCORE = ("first_stage_score", "score")
_RANK = ("first_stage_rank", "rank")
_RELEVANCE = ("relevance", "score", "label", "rel")

_PAIR = {*QUERY_ID, *DOC_ID}
_KNOWN: Mapping[TableName, frozenset[str]] = {
    "documents": frozenset({*DOC_ID, *_OWN_ID, "text", "image", "title", *_LANGUAGE})
    | {"path", "page", "group_id", "place", "search_text"},
    "queries": frozenset({*QUERY_ID, *_OWN_ID, *_TEXT["queries"], "image", *_LANGUAGE}),
    "candidates": frozenset({*_PAIR, *_SCORE, *_RANK}),
    "qrels": frozenset({*_PAIR, *_RELEVANCE, "iteration"}),
}

#: Different fields that are counted, so that keys which are data do not fill the memory.
_COUNTED_FIELDS = 1000

#: Reads an image file that a record names by a path relative to its own file's folder. Raises `LineFault`.
ReadImage = Callable[[str], bytes]


@dataclass(frozen=True, slots=True)
class RecordReader:
    """Makes rows of the records of one file; `not_kept` counts the fields that no column has.

    `metadata` is that of the file. A record without an id gets `default_id` and its number, where that is given; one
    with an id gets `prefix` in front of it.
    """

    options: ReadOptions
    read_image: ReadImage
    metadata: Metadata = field(default_factory=Metadata)
    default_id: str | None = None
    not_kept: Counter[str] = field(default_factory=Counter)
    prefix: str = ""

    def __call__(self, number: int, record: Mapping[str, Any]) -> Iterator[Row]:
        """The rows of a record; raises `LineFault`."""
        table = self.options.table
        for name in record.keys() - _KNOWN[table] - {*self.options.keep}:
            if record[name] not in (None, "", {}, []) and len(self.not_kept) < _COUNTED_FIELDS:
                self.not_kept[str(name)] += 1
        if table in ("documents", "queries"):
            yield from self._content(number, record)
            return
        query_id, doc_id = record_id(record, QUERY_ID), record_id(record, DOC_ID)
        if table == "candidates":
            score, rank = (
                record_number(record, _present(record, _SCORE)),
                record_integer(record, _present(record, _RANK)),
            )
            yield Candidate(query_id, doc_id, score, rank)
        else:
            relevance = record_integer(record, _present(record, _RELEVANCE))
            if relevance is None:
                raise LineFault(SourceFault.FIELD_MISSING, "no 'relevance'")
            yield Qrel(query_id, doc_id, relevance)

    def _content(self, number: int, record: Mapping[str, Any]) -> Iterator[Row]:
        """A document's title stands in front of its text, as in BEIR."""
        table = self.options.table
        text, image = text_of(record, _present(record, _TEXT[table])), self._image(record)
        if text is None and image is None:
            raise LineFault(SourceFault.FIELD_MISSING, f"neither 'text' nor 'image'{_hint(record, table)}")
        names = (*(DOC_ID if table == "documents" else QUERY_ID), *_OWN_ID)
        if self.default_id is not None and not _hint(record, table) and all(record.get(name) is None for name in names):
            row_id = f"{self.default_id}{number}"
        else:
            try:
                row_id = f"{self.prefix}{record_id(record, names)}"
            except LineFault as fault:
                raise LineFault(fault.fault, f"{fault}{_hint(record, table)}") from fault
        kept = tuple(_extra(record, name) for name in kept_fields(self.options))
        metadata = self._metadata(record) if table == "documents" else Metadata(language=_language(record))
        if table == "documents" and metadata.title and text is not None and record.get("title") is not None:
            text = f"{metadata.title} {text}".strip()
        yield from content_rows(ContentRow(row_id, text, image), metadata, kept, self.options)

    def _metadata(self, record: Mapping[str, Any]) -> Metadata:
        """The file's metadata under the record's own."""
        return self.metadata._replace(
            path=text_of(record, "path") or self.metadata.path,
            page=record_integer(record, "page"),
            title=text_of(record, "title") or None,
            language=_language(record),
            group_id=text_of(record, "group_id"),
            place=text_of(record, "place"),
            search_text=text_of(record, "search_text"),
        )

    def _image(self, record: Mapping[str, Any]) -> bytes | None:
        """`image` is a path when it has a dot in it (base64 has none), else base64, maybe behind `data:`."""
        value = text_of(record, "image")
        if value is None:
            return None
        if value.startswith("data:"):
            head, _, value = value.partition(",")
            if not head.endswith(";base64"):
                raise LineFault(SourceFault.FIELD_INVALID, "'image' is a data URI that is not base64")
        elif "." in value:
            return self.read_image(value)
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as error:
            raise LineFault(SourceFault.FIELD_INVALID, "'image' is neither base64 nor a path to a file") from error


def read_jsonl(
    path: str, stream: BufferedIOBase, reader: RecordReader, max_line_bytes: int = 2**28
) -> Iterator[Row | SourceReject]:
    """Yield the rows or a reject for every line that is not blank, holding one line in memory at a time."""
    return read_each(path, json_records(path, numbered_lines(stream, max_line_bytes), max_line_bytes), reader)


def json_objects(text: str, table: TableName) -> list[Record] | None:
    """The records of a JSON file, an object or an array of objects; None where it holds none of the table.

    Raises:
        LineFault: it is not JSON.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise LineFault(SourceFault.JSON_INVALID, f"not JSON{where}") from error
    records = content if isinstance(content, list) else [content]
    needed = {*_TEXT[table], "image"} if table in _TEXT else _PAIR
    if not records or not all(isinstance(record, dict) for record in records):
        return None
    return list(enumerate(records, start=1)) if any(needed & record.keys() for record in records) else None


def csv_records(path: str, text: str, separator: str | None) -> Iterator[Record | SourceReject]:
    """The rows of a CSV file by the names of its first row, numbered by line; an empty field counts as missing.

    `separator` None: the comma, semicolon, tab or bar that the first line has most of. Quotes in a file of tabs count
    only where every line has an even number of them.
    """
    first_line = text.lstrip("\r\n").partition("\n")[0]
    separator = separator or max(",;\t|", key=first_line.count)
    is_quoted = separator != "\t" or all(line.count('"') % 2 == 0 for line in text.splitlines())
    csv.field_size_limit(2**31 - 1)  # the file's size is limited
    rows = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, quoting=csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE
    )
    names = [name.strip() for name in next(rows, [])]
    if len(set(names)) < len(names):
        yield SourceReject(path, SourceFault.FIELD_INVALID, "the first line names a column twice", line=1)
        return
    for values in rows:
        if len(values) > len(names):
            detail = f"{len(values)} fields, the first line names {len(names)}"
            yield SourceReject(path, SourceFault.FIELD_INVALID, detail, line=rows.line_num)
        elif any(values):
            yield rows.line_num, dict(zip(names, (value or None for value in values), strict=False))


def table_of_texts(records: Iterable[Record | SourceReject], table: TableName) -> Iterator[Record | SourceReject]:
    """Records of strings as their table needs them: numbers as numbers, and a text of all fields where none is one."""
    numbers = {"documents": ("page",), "candidates": (*_SCORE, *_RANK), "qrels": _RELEVANCE}.get(table, ())
    for record in records:
        if not isinstance(record, SourceReject):
            number, fields = record
            typed = {name: _as_number(value) if name in numbers else value for name, value in fields.items()}
            if table == "documents" and not {"text", "image"} & fields.keys():
                typed = {name: typed.get(name) for name in (*DOC_ID, *_OWN_ID, *_LANGUAGE) if name in typed}
                typed["text"] = "\n".join(f"{name}: {value}" for name, value in fields.items() if value)
            record = number, typed
        yield record


def _as_number(value: str | None) -> float | int | str | None:
    for kind in (int, float):
        with suppress(ValueError, TypeError):
            return kind(value)  # type: ignore[arg-type]
    return value


def _present(record: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The first of some names that the record has a value for, else the first of them."""
    return next((name for name in names if record.get(name) is not None), names[0])


def _language(record: Mapping[str, Any]) -> str | None:
    return text_of(record, _present(record, _LANGUAGE))


def _hint(record: Mapping[str, Any], table: TableName) -> str:
    """What else a record may be."""
    fields = record.keys()
    if fields & {*QUERY_ID} and fields & {*DOC_ID}:
        return "; it has a query and a document: use --as candidates or --as qrels"
    if table == "documents" and fields & {*QUERY_ID}:
        return "; it has a query id: use --as queries"
    if table == "queries" and fields & {*DOC_ID}:
        return "; it has a document id: use --as documents"
    return ""


def _extra(record: Mapping[str, Any], name: str) -> str | None:
    """An extra field as text: what is no text as JSON writes it, null where it is missing."""
    value = record.get(name)
    if isinstance(value, bool | int | float | list | dict):
        return json.dumps(value, ensure_ascii=False)
    return text_of(record, name)
