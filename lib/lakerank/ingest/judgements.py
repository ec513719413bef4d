"""Files of judgements: TREC's four columns and BEIR's three, told apart by what the first lines hold."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from lakerank.ingest.lines import Line, LineFault, number_of, read_each
from lakerank.ingest.tables import SourceFault, SourceReject
from lakerank.records import Qrel

#: Names of columns in a heading, lower-case, with underscores.
_QUERY = frozenset({"query_id", "query", "qid", "topic"})
_DOCUMENT = frozenset({"doc_id", "document", "document_id", "docid", "docno", "corpus_id", "did", "pid"})
_RELEVANCE = frozenset({"relevance", "score", "rel", "label", "judgement", "judgment", "grade", "qrel"})

#: What TREC's second column holds: the number of an iteration, the same in a whole file.
_ITERATION = re.compile(r"\d{1,3}|Q0", re.IGNORECASE)

#: Lines that decide which columns a file has.
_PEEKED = 200


@dataclass(frozen=True, slots=True)
class QrelColumns:
    """Positions of the document and the relevance in a line of `count` fields; the query is the first."""

    document: int
    relevance: int
    count: int


BEIR = QrelColumns(1, 2, 3)
TREC = QrelColumns(2, 3, 4)


def qrels(path: str, lines: Iterable[Line], prefix: str = "", further_fields: int = 0) -> Iterator[Qrel | SourceReject]:
    """Judgements of three columns (query, document, relevance) or TREC's four (an iteration after the query).

    A first line of names is passed over, and says which column is which. Every other line is a judgement or a reject:
    also one whose number of fields (`further_fields` of TREC's apart) is not that of the first lines. Four columns
    whose second is no iteration are not guessed at: each line is a reject. `prefix` is put before ids.

    Source: `GenericDataLoader._load_qrels` in github.com/beir-cellar/beir; trec_eval's `get_qrels.c`.
    """
    stream = iter(lines)
    first = list(itertools.islice(stream, _PEEKED))
    rows = [line[1] for line in first if isinstance(line, tuple)]
    heading = _heading(rows[0]) if rows else None
    columns = heading or _columns(rows, further_fields)
    is_heading = heading is not None

    def judgement(_line: int, fields: list[str]) -> Iterator[Qrel]:
        nonlocal is_heading
        if is_heading:
            is_heading = False
        else:
            yield _qrel(fields, columns, further_fields, prefix)

    return read_each(path, itertools.chain(first, stream), judgement)


def _heading(names: Sequence[str]) -> QrelColumns | None:
    """The columns that a first line of names says; None where it holds values."""
    known = [name.strip().lower().replace("-", "_") for name in names]
    places = [next((at for at, name in enumerate(known) if name in group), None) for group in (_DOCUMENT, _RELEVANCE)]
    if known[0] not in _QUERY or places[0] is None or places[1] is None:
        return None
    return QrelColumns(places[0], places[1], len(known))


def _columns(rows: Sequence[Sequence[str]], further_fields: int) -> QrelColumns | None:
    """The columns of a file without names; None where they cannot be told."""
    if not rows or sum(len(row) == BEIR.count for row in rows) * 2 >= len(rows):
        return BEIR
    second = {row[1] for row in rows if TREC.count <= len(row) <= TREC.count + further_fields}
    return TREC if len(second) == 1 and _ITERATION.fullmatch(next(iter(second))) else None


def _qrel(fields: list[str], columns: QrelColumns | None, further_fields: int, prefix: str) -> Qrel:
    if columns is None:
        if len(fields) < BEIR.count:
            raise LineFault(SourceFault.FIELD_MISSING, f"{len(fields)} fields, not query, document, relevance")
        detail = f"{len(fields)} fields: neither query, document, relevance nor TREC's, whose second is 0 in every line"
        raise LineFault(SourceFault.FIELD_INVALID, detail)
    names = "query, document, relevance" if columns == BEIR else "query, 0, document, relevance"
    if len(fields) < columns.count:
        raise LineFault(SourceFault.FIELD_MISSING, f"{len(fields)} fields, not {names}")
    if len(fields) > columns.count + (further_fields if columns == TREC else 0):
        raise LineFault(
            SourceFault.FIELD_INVALID, f"{len(fields)} fields, not {names}; separate ids with spaces by tabs"
        )
    relevance = number_of(fields[columns.relevance])
    if not relevance.is_integer() or abs(relevance) >= 2**31:
        raise LineFault(SourceFault.FIELD_INVALID, "the relevance is not a 32-bit integer")
    query, document = fields[0].strip(), fields[columns.document].strip()
    if not query or not document:
        raise LineFault(SourceFault.FIELD_INVALID, "an id is empty")
    return Qrel(prefix + query, prefix + document, int(relevance))
