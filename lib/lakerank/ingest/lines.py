"""Lines of files: JSON objects and their fields, fields of judgements. Faults are reported by line number."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from lakerank.ingest.tables import SourceFault, SourceReject

#: Fields of a line of TREC judgements; a run has more.
_TREC_FIELDS = 4

_INT32 = range(-(2**31), 2**31)

Fields = TypeVar("Fields")
Read = TypeVar("Read")

#: A line's number and its fields, or its reject.
Line = tuple[int, list[str]] | SourceReject

#: A line of a file or a row of a table: its number from 1, and its fields by name.
Record = tuple[int, Mapping[str, Any]]


class LineFault(Exception):
    """A line that cannot become a row."""

    def __init__(self, fault: SourceFault, detail: str) -> None:
        super().__init__(detail)
        self.fault = fault


def read_each(
    path: str,
    records: Iterable[tuple[int, Fields] | SourceReject],
    read: Callable[[int, Fields], Iterable[Read]],
) -> Iterator[Read | SourceReject]:
    """The results of reading each numbered record of a file. One whose reading raises `LineFault` becomes a reject."""
    for record in records:
        if isinstance(record, SourceReject):
            yield record
            continue
        line, fields = record
        try:
            yield from read(line, fields)
        except LineFault as fault:
            yield SourceReject(path, fault.fault, str(fault), line=line)


def json_records(
    path: str, lines: Iterable[tuple[int, bytes | None]], max_line_bytes: int
) -> Iterator[Record | SourceReject]:
    """The JSON object of each line that is not blank, or a reject for the line."""

    def record(number: int, line: bytes | None) -> Iterator[Record]:
        if line is None:
            raise LineFault(SourceFault.FILE_TOO_LARGE, f"the line has more than {max_line_bytes} bytes")
        if line.strip():
            yield number, _parse_object(line)

    return read_each(path, lines, record)


def _decoded(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LineFault(SourceFault.TEXT_UNDECODABLE, f"not UTF-8 at byte {error.start}") from error


def _parse_object(line: bytes) -> Mapping[str, Any]:
    text = _decoded(line)
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise LineFault(SourceFault.JSON_INVALID, f"not JSON{where}") from error
    if not isinstance(record, dict):
        raise LineFault(SourceFault.JSON_INVALID, "not a JSON object")
    return record


def record_id(record: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The first of the named fields that is there, as an id; raises `LineFault`."""
    for name in names:
        value = record.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if value is not None:
            text = record_text(record, name)
            if not text:
                raise LineFault(SourceFault.FIELD_INVALID, f"'{name}' is empty")
            return text
    raise LineFault(SourceFault.FIELD_MISSING, f"no {' or '.join(repr(name) for name in names)}")


def record_text(record: Mapping[str, Any], name: str) -> str | None:
    """A field that holds text, None where there is none; raises `LineFault`."""
    value = record.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise LineFault(SourceFault.FIELD_INVALID, f"'{name}' is {type(value).__name__}, not a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can express a lone surrogate, UTF-8 cannot
        raise LineFault(SourceFault.TEXT_UNDECODABLE, f"'{name}' holds a lone surrogate") from error
    return value


def record_number(record: Mapping[str, Any], name: str) -> float | None:
    """A field that holds a finite number, None where there is none; raises `LineFault`."""
    value = record.get(name)
    if value is None:
        return None
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        with suppress(OverflowError):
            number = float(value)
    if not math.isfinite(number):
        raise LineFault(SourceFault.FIELD_INVALID, f"'{name}' is not a finite number")
    return number


def record_integer(record: Mapping[str, Any], name: str) -> int | None:
    """A field that holds a 32-bit integer, None where there is none; raises `LineFault`."""
    number = record_number(record, name)
    if number is None:
        return None
    if not number.is_integer() or int(number) not in _INT32:
        raise LineFault(SourceFault.FIELD_INVALID, f"'{name}' is not a 32-bit integer")
    return int(number)


def split_lines(path: str, lines: Iterable[tuple[int, bytes | None]], separator: str | None) -> Iterator[Line]:
    """The fields of each line that is not blank, split at a separator.

    None: at tabs where that gives four fields, else at spaces and tabs. So ids may hold spaces where tabs separate, and
    other white space everywhere.
    """

    def fields(number: int, line: bytes | None) -> Iterator[tuple[int, list[str]]]:
        if line is None:
            raise LineFault(SourceFault.FILE_TOO_LARGE, "the line is too long")
        text = _decoded(line)
        if text.strip():
            text = text.rstrip("\r\n")
            yield number, text.split(separator) if separator else _trec_fields(text)

    return read_each(path, lines, fields)


def _trec_fields(text: str) -> list[str]:
    fields = [field.strip() for field in text.split("\t")]
    return fields if len(fields) >= _TREC_FIELDS else re.split("[ \t]+", text.strip(" \t"))


def number_of(field: str) -> float:
    """A field as a number, NaN where it is none."""
    try:
        return float(field)
    except ValueError:
        return math.nan
