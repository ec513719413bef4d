"""Records, which are JSON objects or rows of CSV files, as rows of any table."""

from __future__ import annotations

import base64
import binascii
import csv
import io
import json
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lakerank.ingest.judgements import DOC_ID, QUERY_ID, RELEVANCE, qrel
from lakerank.ingest.lines import Record, as_number, record_id, record_integer, record_number
from lakerank.ingest.lines import record_text as text_of
from lakerank.ingest.readers.reader import ReadOptions
from lakerank.ingest.rejects import SourceError, SourceFault, SourceReject
from lakerank.ingest.rows import Metadata, content_rows, kept_fields
from lakerank.ingest.source import Source, SourceFile, image_at
from lakerank.ingest.tables import ContentRow, Row, TableName
from lakerank.records import Candidate

#: Fields that may hold a value, by column; the first that exists counts.
_OWN_ID = ("id", "_id")
_TEXT: Mapping[TableName, tuple[str, ...]] = {"documents": ("text",), "queries": ("text", "query", "question")}
_LANGUAGE = ("language", "lang")
_SCORE = ("first_stage_score", "score")
_RANK = ("first_stage_rank", "rank")

_PAIR = {*QUERY_ID, *DOC_ID}
_KNOWN: Mapping[TableName, frozenset[str]] = {
    "documents": frozenset({*DOC_ID, *_OWN_ID, "text", "image", "title", *_LANGUAGE})
    | {"path", "page", "group_id", "place", "search_text"},
    "queries": frozenset({*QUERY_ID, *_OWN_ID, *_TEXT["queries"], "image", "instruction", *_LANGUAGE}),
    "candidates": frozenset({*_PAIR, *_SCORE, *_RANK}),
    "qrels": frozenset({*_PAIR, *RELEVANCE, "iteration"}),
}

#: Different fields that are counted, so that keys which are data do not fill the memory.
_COUNTED_FIELDS = 1000


@dataclass(frozen=True, slots=True)
class RecordReader:
    """Makes rows of the records of one file; `not_kept` counts the fields that no column has.

    A record without an id gets `default_id` and its number, where that is given.
    """

    options: ReadOptions
    source: Source
    file: SourceFile
    default_id: str | None = None
    not_kept: Counter[str] = field(default_factory=Counter)

    def __call__(self, number: int, record: Mapping[str, Any]) -> Iterator[Row]:
        """The rows of a record; raises `SourceError`."""
        table = self.options.table
        for name in record.keys() - _KNOWN[table] - {*self.options.keep}:
            if record[name] not in (None, "", {}, []) and len(self.not_kept) < _COUNTED_FIELDS:
                self.not_kept[str(name)] += 1
        if table in ("documents", "queries"):
            yield from self._content(number, record)
        elif table == "qrels":
            yield qrel(record)
        else:
            score, rank = record_number(record, *_SCORE), record_integer(record, *_RANK)
            yield Candidate(record_id(record, *QUERY_ID), record_id(record, *DOC_ID), score, rank)

    def _content(self, number: int, record: Mapping[str, Any]) -> Iterator[Row]:
        """A document's title stands in front of its text, as in BEIR."""
        table = self.options.table
        text, image = text_of(record, *_TEXT[table]), self._image(record)
        if text is None and image is None:
            raise SourceError(SourceFault.FIELD_MISSING, f"neither 'text' nor 'image'{_hint(record, table)}")
        row_id = self._id(number, record)
        metadata = self._metadata(record) if table == "documents" else Metadata(language=text_of(record, *_LANGUAGE))
        if metadata.title and text is not None:
            text = f"{metadata.title} {text}".strip()
        kept = tuple(_extra(record, name) for name in kept_fields(self.options))
        yield from content_rows(ContentRow(row_id, text, image), metadata, kept, self.options)

    def _id(self, number: int, record: Mapping[str, Any]) -> str:
        table, in_file = self.options.table, self.options.file_in_ids and self.source.is_folder
        try:
            own = record_id(record, *(DOC_ID if table == "documents" else QUERY_ID), *_OWN_ID)
        except SourceError as error:
            hint = _hint(record, table)
            if self.default_id is None or hint or error.fault is not SourceFault.FIELD_MISSING:
                raise SourceError(error.fault, f"{error}{hint}") from error
            return f"{self.default_id}{number}"
        return f"{self.file.path}#{own}" if in_file else own

    def _metadata(self, record: Mapping[str, Any]) -> Metadata:
        """The file's metadata under the record's own."""
        texts = {name: text_of(record, name) or None for name in ("title", "group_id", "place", "search_text")}
        path, page = text_of(record, "path") or self.file.path, record_integer(record, "page")
        of_file = {"size": self.file.size, "modified": self.file.modified}
        return Metadata(path, page, language=text_of(record, *_LANGUAGE), **of_file, **texts)  # type: ignore[arg-type]

    def _image(self, record: Mapping[str, Any]) -> bytes | None:
        """`image` is a path when it has a dot in it (base64 has none), else base64, maybe behind `data:`."""
        value = text_of(record, "image")
        if value is None:
            return None
        if value.startswith("data:"):
            head, _, value = value.partition(",")
            if not head.endswith(";base64"):
                raise SourceError(SourceFault.FIELD_INVALID, "'image' is a data URI that is not base64")
        elif "." in value:
            folder = posixpath.dirname(self.file.path)
            return image_at(self.source, posixpath.join(folder, value), self.options.max_file_bytes)
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as error:
            raise SourceError(SourceFault.FIELD_INVALID, "'image' is neither base64 nor a path to a file") from error


def json_objects(text: str, table: TableName) -> list[Record] | None:
    """The records of a JSON file, an object or an array of objects; None where it holds none of the table.

    Raises:
        SourceError: it is not JSON.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise SourceError(SourceFault.JSON_INVALID, f"not JSON{where}") from error
    records = content if isinstance(content, list) else [content]
    needed = {*_TEXT[table], "image"} if table in _TEXT else _PAIR
    if not records or not all(isinstance(record, dict) for record in records):
        return None
    return list(enumerate(records, start=1)) if any(needed & record.keys() for record in records) else None


def csv_records(path: str, text: str, separator: str | None, table: TableName) -> Iterator[Record | SourceReject]:
    """The rows of a CSV file by the names of its first row, numbered by line, as their table needs them.

    An empty field counts as missing, a number is one where the table has numbers, and a document of neither `text` nor
    `image` gets a text of all its fields. `separator` None: the comma, semicolon, tab or bar that the first line has
    most of. Quotes in a file of tabs count only where every line has an even number of them.
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
            yield rows.line_num, _typed(dict(zip(names, (value or None for value in values), strict=False)), table)


def _typed(fields: Mapping[str, str | None], table: TableName) -> Mapping[str, Any]:
    numbers = {"documents": ("page",), "candidates": (*_SCORE, *_RANK), "qrels": RELEVANCE}.get(table, ())
    typed = {name: as_number(value) if name in numbers else value for name, value in fields.items()}
    if table == "documents" and not {"text", "image"} & fields.keys():
        typed = {name: typed[name] for name in (*DOC_ID, *_OWN_ID, *_LANGUAGE) if name in typed}
        typed["text"] = "\n".join(f"{name}: {value}" for name, value in fields.items() if value)
    return typed


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
