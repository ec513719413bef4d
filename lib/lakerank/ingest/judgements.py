"""Files of judgements: TREC's four columns and BEIR's three, told apart by what the first lines hold."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lakerank.ingest.lines import Line, as_number, present, read_each, record_id, record_integer
from lakerank.ingest.rejects import SourceError, SourceFault, SourceReject
from lakerank.records import Qrel

#: Fields of a record that may hold a value; the first that is there counts.
QUERY_ID = ("query_id", "query-id", "qid")
DOC_ID = ("doc_id", "corpus_id", "corpus-id", "docid")
RELEVANCE = ("relevance", "score", "label", "rel")

#: Names of columns in a heading, lower-case, with underscores.
_QUERY = frozenset({"query_id", "query", "qid", "topic"})
_DOCUMENT = frozenset({"doc_id", "document", "document_id", "docid", "docno", "corpus_id", "did", "pid"})
_RELEVANCE = frozenset({"relevance", "score", "rel", "label", "judgement", "judgment", "grade", "qrel"})

#: What TREC's second column holds: the number of an iteration, the same in a whole file.
_ITERATION = re.compile(r"\d{1,3}|Q0", re.IGNORECASE)

#: Lines that decide which columns a file has.
_PEEKED = 200


class QrelColumns(NamedTuple):
    """Positions of the document and the relevance in a line of so many fields; the query is the first."""

    document: int
    relevance: int
    fields: int


BEIR = QrelColumns(1, 2, 3)
TREC = QrelColumns(2, 3, 4)

_BEIR_NAMES, _TREC_NAMES = "query, document, relevance", "query, 0, document, relevance"


def qrels(path: str, lines: Iterable[Line]) -> Iterator[Qrel | SourceReject]:
    """Judgements of three columns (query, document, relevance) or TREC's four (an iteration after the query).

    A first line of names is passed over, and says which column is which. Every other line is a judgement or a reject:
    also one whose number of fields is not that of the first lines. Four columns whose second is no iteration are not
    guessed at: each line is a reject.

    Source: `GenericDataLoader._load_qrels` in github.com/beir-cellar/beir; trec_eval's `get_qrels.c`.
    """
    stream = iter(lines)
    first = list(itertools.islice(stream, _PEEKED))
    numbered = [line for line in first if isinstance(line, tuple)]
    if columns := _heading(numbered[0][1]) if numbered else None:
        first.remove(numbered[0])
    else:
        columns = _columns([fields for _, fields in numbered])
    return read_each(path, itertools.chain(first, stream), lambda _line, fields: [_qrel(fields, columns)])


def _heading(names: Sequence[str]) -> QrelColumns | None:
    """The columns that a first line of names says; None where it holds values."""
    known = [name.strip().lower().replace("-", "_") for name in names]
    document, relevance = (
        next((at for at, name in enumerate(known) if name in group), 0) for group in (_DOCUMENT, _RELEVANCE)
    )
    return QrelColumns(document, relevance, len(known)) if known[0] in _QUERY and document and relevance else None


def _columns(rows: Sequence[Sequence[str]]) -> QrelColumns | None:
    """The columns of a file without names; None where they cannot be told."""
    if not rows or sum(len(row) == BEIR.fields for row in rows) * 2 >= len(rows):
        return BEIR
    second = [*{row[1] for row in rows if len(row) == TREC.fields}]
    return TREC if len(second) == 1 and _ITERATION.fullmatch(second[0]) else None


def _qrel(fields: list[str], columns: QrelColumns | None) -> Qrel:
    count = len(fields)
    if count < (columns or BEIR).fields:
        names = _TREC_NAMES if columns == TREC else _BEIR_NAMES
        raise SourceError(SourceFault.FIELD_MISSING, f"{count} fields, not {names}")
    if columns is None:
        detail = f"{count} fields: neither {_BEIR_NAMES} nor TREC's, whose second is 0 in every line"
        raise SourceError(SourceFault.FIELD_INVALID, detail)
    if count > columns.fields:
        detail = f"{count} fields, the first lines have {columns.fields}; separate ids with spaces by tabs"
        raise SourceError(SourceFault.FIELD_INVALID, detail)
    ids = {"query_id": fields[0].strip(), "doc_id": fields[columns.document].strip()}
    return qrel(ids | {"relevance": as_number(fields[columns.relevance])})


def qrel(record: Mapping[str, Any]) -> Qrel:
    """A judgement from a record; raises `SourceError`."""
    query_id, doc_id = record_id(record, QUERY_ID), record_id(record, DOC_ID)
    relevance = record_integer(record, present(record, RELEVANCE))
    if relevance is None:
        raise SourceError(SourceFault.FIELD_MISSING, "no 'relevance'")
    return Qrel(query_id, doc_id, relevance)
