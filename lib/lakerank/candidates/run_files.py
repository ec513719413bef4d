"""Run files of other systems, in trec_eval's format: every line is an item of a list, or a fault with its number."""

from __future__ import annotations

import gzip
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from typing import Literal

from lakerank.credentials import redacted
from lakerank.errors import StorageError
from lakerank.lake.backends import storage_errors
from lakerank.lake.storage import Storage, numbered_lines

#: Longer lines are faults.
MAX_LINE_BYTES = 2**20

_NAMES = "query, Q0, document, rank, score, tag"
_FIELDS = re.compile(r"[^ \t\f\v]+")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE | re.ASCII)

#: Why a line of a run gives no candidate. The names are those of ingestion's faults.
FaultCode = Literal[
    "field_missing", "field_invalid", "file_too_large", "text_undecodable", "query_not_found", "document_not_found"
]


@dataclass(frozen=True, slots=True)
class RunLine:
    """A line of a run; `line` counts from 1."""

    query_id: str
    doc_id: str
    score: float
    line: int


@dataclass(frozen=True, slots=True)
class RunFault:
    """A line that gives no candidate, and why; `line` counts from 1."""

    code: FaultCode
    detail: str
    line: int


def read_run(storage: Storage, uri: str, task_number: bool = False) -> Iterator[RunLine | RunFault]:
    """The lines of a run file (gzipped if its name says so), except blank ones, in one pass.

    Fields are apart by tabs where there are tabs, so that ids may hold spaces; else by any white space. With
    `task_number` lines may have a seventh field, as M-BEIR's have.

    Raises:
        StorageError: the file cannot be read, or is not gzipped although its name says so.
    """
    with storage_errors(uri, "read"), storage.open_stream(uri) as stream:
        plain: BufferedIOBase = gzip.GzipFile(fileobj=stream) if uri.lower().endswith(".gz") else stream
        yield from parse_run(numbered_lines(plain, MAX_LINE_BYTES), task_number)


def parse_run(lines: Iterable[tuple[int, bytes | None]], task_number: bool = False) -> Iterator[RunLine | RunFault]:
    """The items of numbered lines; None stands for a line that is too long."""
    for number, line in lines:
        if line is None:
            yield RunFault("file_too_large", f"the line has more than {MAX_LINE_BYTES} bytes", number)
            continue
        try:
            text = line.decode("utf-8").strip("\r\n")
        except UnicodeDecodeError as error:
            yield RunFault("text_undecodable", f"not UTF-8 at byte {error.start}", number)
            continue
        if text.strip():
            yield _item(_fields(text), number, task_number)


def best_items(lines: Iterable[RunLine], depth: int) -> list[RunLine]:
    """The `depth` best lines of one query by score, each document once; ties in the order of the file."""
    documents: dict[str, RunLine] = {}
    for line in sorted(lines, key=lambda line: -line.score):
        documents.setdefault(line.doc_id, line)
        if len(documents) == depth:
            break
    return list(documents.values())


def no_known_query(uri: str, what: str, example: str) -> StorageError:
    """The error of a run without any line of the queries that it is for."""
    return StorageError(f'{redacted(uri)}: no line is of a query of {what}, whose ids are like "{example}"')


def _fields(text: str) -> list[str]:
    """The fields of a line. One with tabs and spaces as separators is split at both if only that gives six fields."""
    loose = _FIELDS.findall(text)
    if "\t" not in text:
        return loose
    tabbed = [field.strip(" ") for field in text.split("\t")]
    has_inner_spaces = any(" " in field for field in tabbed)
    return loose if len(loose) == 6 and (len(tabbed) < 5 or not has_inner_spaces) else tabbed


def _item(fields: list[str], number: int, task_number: bool) -> RunLine | RunFault:
    if len(fields) < 6:
        return RunFault("field_missing", f"{len(fields)} fields, not {_NAMES}", number)
    if len(fields) > 6 and not (task_number and len(fields) == 7 and fields[6].isdigit()):
        detail = f"{len(fields)} fields, not {_NAMES}; where ids hold spaces, fields must be apart by tabs"
        return RunFault("field_invalid", detail, number)
    query_id, _, doc_id, rank, score, *_ = fields
    if not query_id or not doc_id:
        return RunFault("field_invalid", f"the {'document' if query_id else 'query'} has no id", number)
    if math.isnan(_number(rank)):
        return RunFault("field_invalid", "the rank is not a number: are the fields in another order?", number)
    value = _number(score)
    if not math.isfinite(value):
        return RunFault("field_invalid", "the score is not a finite number", number)
    return RunLine(query_id, doc_id, value, number)


def _number(field: str) -> float:
    """A field as a number, NaN where it is none."""
    return float(field) if _NUMBER.fullmatch(field) else math.nan
