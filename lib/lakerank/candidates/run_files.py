"""Run files of other systems, in trec_eval's format: every line is an item of a list, or a reject with its number."""

from __future__ import annotations

import gzip
import math
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BufferedIOBase

from lakerank.credentials import redacted
from lakerank.errors import StorageError
from lakerank.ingest.lines import read_each, text_lines
from lakerank.ingest.rejects import SourceError, SourceFault, SourceReject
from lakerank.lake.backends import storage_errors
from lakerank.lake.storage import Storage

#: Longer lines are rejects.
MAX_LINE_BYTES = 2**20

_NAMES = "query, Q0, document, rank, score, tag"
_FIELDS = re.compile(r"[^ \t\f\v]+")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE | re.ASCII)

#: Cuts a line into its fields.
SplitLine = Callable[[str], list[str]]


@dataclass(frozen=True, slots=True)
class RunLine:
    """A line of a run; `line` counts from 1."""

    query_id: str
    doc_id: str
    score: float
    line: int


def run_fields(text: str) -> list[str]:
    """The fields of a line: apart by tabs where there are tabs, so that ids may hold spaces, else by any white space.

    One with tabs and spaces as separators is split at both if only that gives six fields.
    """
    loose = _FIELDS.findall(text)
    if "\t" not in text:
        return loose
    tabbed = [field.strip(" ") for field in text.split("\t")]
    has_inner_spaces = any(" " in field for field in tabbed)
    return loose if len(loose) == 6 and (len(tabbed) < 5 or not has_inner_spaces) else tabbed


def read_run(storage: Storage, uri: str, split: SplitLine = run_fields) -> Iterator[RunLine | SourceReject]:
    """The lines of a run file (gzipped if its name says so), except blank ones, in one pass.

    Raises:
        StorageError: the file cannot be read, or is not gzipped although its name says so.
    """
    name = posixpath.basename(uri)
    with storage_errors(uri, "read"), storage.open_stream(uri) as stream:
        plain: BufferedIOBase = gzip.GzipFile(fileobj=stream) if uri.lower().endswith(".gz") else stream
        lines = text_lines(name, plain, MAX_LINE_BYTES)
        yield from read_each(name, lines, lambda number, text: [run_line(number, split(text))])


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


def run_line(number: int, fields: list[str]) -> RunLine:
    """The item of a line; raises `SourceError`."""
    if len(fields) < 6:
        raise SourceError(SourceFault.FIELD_MISSING, f"{len(fields)} fields, not {_NAMES}")
    query_id, _, doc_id, rank, score, *further = fields
    fault = None
    if len(further) > 1:
        fault = f"{len(fields)} fields, not {_NAMES}; where ids hold spaces, fields must be apart by tabs"
    elif not query_id or not doc_id:
        fault = f"the {'document' if query_id else 'query'} has no id"
    elif math.isnan(_number(rank)):
        fault = "the rank is not a number: are the fields in another order?"
    elif not math.isfinite(_number(score)):
        fault = "the score is not a finite number"
    if fault:
        raise SourceError(SourceFault.FIELD_INVALID, fault)
    return RunLine(query_id, doc_id, float(score), number)


def _number(field: str) -> float:
    """A field as a number, NaN where it is none."""
    return float(field) if _NUMBER.fullmatch(field) else math.nan
