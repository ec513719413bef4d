"""Judgements and runs as TREC and its heirs write them: a line a pair, fields apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from lakerank.ingest.items import SourceFault, SourceReject
from lakerank.ingest.jsonl import LineFault, read_each
from lakerank.records import Qrel

#: A line's number and its fields, or why there is none.
Line = tuple[int, list[str]] | SourceReject


@dataclass(frozen=True, slots=True)
class RunLine:
    """A document that a first stage found; `line` counts from 1."""

    query_id: str
    doc_id: str
    score: float
    line: int


def split_lines(path: str, lines: Iterable[tuple[int, bytes | None]], separator: str | None) -> Iterator[Line]:
    """The fields of each line that is not blank, split at a separator (None: at any white space)."""
    for number, line in lines:
        if line is None:
            yield SourceReject(path, SourceFault.FILE_TOO_LARGE, "the line is too long", line=number)
            continue
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            yield SourceReject(path, SourceFault.TEXT_UNDECODABLE, f"not UTF-8 at byte {error.start}", line=number)
            continue
        if text.strip():
            yield number, text.rstrip("\r\n").split(separator)


def tsv_qrels(path: str, lines: Iterable[Line], query_prefix: str, doc_prefix: str) -> Iterator[Qrel | SourceReject]:
    """Judgements as BEIR ships them: query-id, corpus-id, score; a first line of names is passed over.

    Source: `GenericDataLoader._load_qrels` in github.com/beir-cellar/beir.
    """

    def judgement(fields: list[str]) -> Qrel:
        if len(fields) < 3:
            raise LineFault(SourceFault.FIELD_MISSING, f"{len(fields)} fields, not query-id, corpus-id, score")
        return Qrel(query_prefix + fields[0], doc_prefix + fields[1], _relevance(fields[2]))

    yield from _judgements(path, lines, judgement, header=True)


def trec_qrels(path: str, lines: Iterable[Line], query_prefix: str, doc_prefix: str) -> Iterator[Qrel | SourceReject]:
    """Judgements as trec_eval reads them: query, iteration, document, relevance; further fields are passed over."""

    def judgement(fields: list[str]) -> Qrel:
        if len(fields) < 4:
            raise LineFault(SourceFault.FIELD_MISSING, f"{len(fields)} fields, not query, 0, document, relevance")
        return Qrel(query_prefix + fields[0], doc_prefix + fields[2], _relevance(fields[3]))

    yield from _judgements(path, lines, judgement, header=False)


def _judgements(
    path: str, lines: Iterable[Line], judgement: Callable[[list[str]], Qrel], header: bool
) -> Iterator[Qrel | SourceReject]:
    def read(number: int, fields: list[str]) -> Iterator[Qrel]:
        try:
            yield judgement(fields)
        except LineFault:
            if not (header and number == 1):
                raise

    return read_each(path, lines, read)


def _number(field: str) -> float:
    """What a field says, NaN where it is no number."""
    try:
        return float(field)
    except ValueError:
        return math.nan


def _relevance(field: str) -> int:
    number = _number(field)
    if not number.is_integer() or abs(number) >= 2**31:
        raise LineFault(SourceFault.FIELD_INVALID, "the relevance is not a 32-bit integer")
    return int(number)


def run_lines(path: str, lines: Iterable[Line]) -> Iterator[RunLine | SourceReject]:
    """A run: query, Q0, document, rank, score, tag. Further fields are passed over; the score orders, not the rank."""

    def read(number: int, fields: list[str]) -> Iterator[RunLine]:
        if len(fields) < 6:
            detail = f"{len(fields)} fields, not query, Q0, document, rank, score, tag"
            raise LineFault(SourceFault.FIELD_MISSING, detail)
        score = _number(fields[4])
        if not math.isfinite(score):
            raise LineFault(SourceFault.FIELD_INVALID, "the score is not a finite number")
        yield RunLine(fields[0], fields[2], score, number)

    return read_each(path, lines, read)
