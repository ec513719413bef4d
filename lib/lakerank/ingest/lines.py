"""Lines of files: JSON objects and their fields, fields of judgements. Faults are reported by line number."""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from io import BufferedIOBase
from typing import Any, TypeVar

from lakerank.ingest.rejects import SourceError, SourceFault, SourceReject

#: Fields of a line of TREC judgements; a run has more.
_TREC_FIELDS = 4

_INT32 = range(-(2**31), 2**31)

Fields = TypeVar("Fields")
Read = TypeVar("Read")

#: A line's number and its text, or its fields; or its reject.
TextLine = tuple[int, str] | SourceReject
Line = tuple[int, list[str]] | SourceReject

#: A line of a file or a row of a table: its number from 1, and its fields by name.
Record = tuple[int, Mapping[str, Any]]


def read_each(
    path: str, records: Iterable[tuple[int, Fields] | SourceReject], read: Callable[[int, Fields], Iterable[Read]]
) -> Iterator[Read | SourceReject]:
    """The results of reading each numbered record of a file, or a reject where reading it raises `SourceError`."""
    for record in records:
        if isinstance(record, SourceReject):
            yield record
            continue
        line, fields = record
        try:
            yield from read(line, fields)
        except SourceError as fault:
            yield SourceReject(path, fault.fault, str(fault), line=line)


def text_lines(path: str, stream: BufferedIOBase, max_line_bytes: int) -> Iterator[TextLine]:
    """Number, from 1, and text of each line that is not blank, or a reject for it; one line is in memory at a time."""
    number = 0
    while line := stream.readline(max_line_bytes + 1):
        number += 1
        if len(line) > max_line_bytes and not line.endswith(b"\n"):
            while (rest := stream.readline(max_line_bytes)) and not rest.endswith(b"\n"):
                pass
            detail = f"the line has more than {max_line_bytes} bytes"
            yield SourceReject(path, SourceFault.FILE_TOO_LARGE, detail, line=number)
        elif (plain := line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).strip():
            try:
                yield number, plain.decode().rstrip("\r\n")
            except UnicodeDecodeError as error:
                yield SourceReject(path, SourceFault.TEXT_UNDECODABLE, f"not UTF-8 at byte {error.start}", line=number)


def json_records(path: str, lines: Iterable[TextLine]) -> Iterator[Record | SourceReject]:
    """The JSON object of each line, or a reject for it."""

    def record(number: int, text: str) -> list[Record]:
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            where = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            raise SourceError(SourceFault.JSON_INVALID, f"not JSON{where}") from error
        if not isinstance(fields, dict):
            raise SourceError(SourceFault.JSON_INVALID, "not a JSON object")
        return [(number, fields)]

    return read_each(path, lines, record)


def split_lines(lines: Iterable[TextLine], separator: str | None) -> Iterator[Line]:
    """The fields of each line, split at a separator.

    None: at tabs where that gives four fields, else at spaces and tabs. So ids may hold spaces where tabs separate, and
    other white space everywhere.
    """
    for line in lines:
        if isinstance(line, SourceReject):
            yield line
        else:
            yield line[0], line[1].split(separator) if separator else _trec_fields(line[1])


def _trec_fields(text: str) -> list[str]:
    fields = [field.strip() for field in text.split("\t")]
    return fields if len(fields) >= _TREC_FIELDS else re.split("[ \t]+", text.strip(" \t"))


def _present(record: Mapping[str, Any], names: Sequence[str]) -> tuple[str, Any]:
    """Name and value of the first of some fields that has a value, None for the first of them where none has."""
    return next(((name, record[name]) for name in names if record.get(name) is not None), (names[0], None))


def record_id(record: Mapping[str, Any], *names: str) -> str:
    """The first of the named fields that is there, as an id; raises `SourceError`."""
    name, value = _present(record, names)
    if value is None:
        raise SourceError(SourceFault.FIELD_MISSING, f"no {' or '.join(map(repr, names))}")
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else record_text(record, name)
    if not text:
        raise SourceError(SourceFault.FIELD_INVALID, f"'{name}' is empty")
    return text


def record_text(record: Mapping[str, Any], *names: str) -> str | None:
    """The first of the named fields that is there and holds text, None where none is; raises `SourceError`."""
    name, value = _present(record, names)
    if value is None:
        return None
    if not isinstance(value, str):
        raise SourceError(SourceFault.FIELD_INVALID, f"'{name}' is {type(value).__name__}, not a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can express a lone surrogate, UTF-8 cannot
        raise SourceError(SourceFault.TEXT_UNDECODABLE, f"'{name}' holds a lone surrogate") from error
    return value


def record_number(record: Mapping[str, Any], *names: str) -> float | None:
    """The first of the named fields that is there, a finite number, None where none is; raises `SourceError`."""
    name, value = _present(record, names)
    if value is None:
        return None
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        with suppress(OverflowError):
            number = float(value)
    if not math.isfinite(number):
        raise SourceError(SourceFault.FIELD_INVALID, f"'{name}' is not a finite number")
    return number


def record_integer(record: Mapping[str, Any], *names: str) -> int | None:
    """The same of a 32-bit integer."""
    number = record_number(record, *names)
    if number is not None and (not number.is_integer() or int(number) not in _INT32):
        raise SourceError(SourceFault.FIELD_INVALID, f"'{_present(record, names)[0]}' is not a 32-bit integer")
    return None if number is None else int(number)


def as_number(field: str | None) -> float | int | str | None:
    """A text that is a number as one; any other as it is."""
    for kind in (int, float):
        with suppress(ValueError, TypeError):
            return kind(field)  # type: ignore[arg-type]
    return field
