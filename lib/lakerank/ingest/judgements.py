"""Files of judgements: TREC's four columns and BEIR's three, told apart by what the first lines hold."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lakerank.ingest.lines import Line, as_number, read_each, record_id, record_integer
from lakerank.ingest.rejects import SourceError, SourceFault, SourceReject
from lakerank.records import Qrel

#: Fields of a record that may hold a value; the first that is there counts.
QUERY_ID = ("query_id", "query-id", "qid")
DOC_ID = ("doc_id", "corpus_id", "corpus-id", "docid")
RELEVANCE = ("relevance", "score", "label", "rel")

#: Columns of a file. A heading may name them so, in any case and with hyphens, or otherwise.
_BEIR = ("query", "document", "relevance")
_TREC = ("query", "0", "document", "relevance")
_OTHER_NAMES = {
    **dict.fromkeys(["query_id", "qid", "topic"], "query"),
    **dict.fromkeys(["doc_id", "document_id", "docid", "docno", "corpus_id", "did", "pid"], "document"),
    **dict.fromkeys(["score", "rel", "label", "judgement", "judgment", "grade", "qrel"], "relevance"),
}

#: What TREC's second column holds: the number of an iteration, the same in a whole file.
_ITERATION = re.compile(r"\d{1,3}|Q0", re.IGNORECASE)

#: Lines that decide which columns a file has.
_PEEKED = 200


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


def _heading(fields: Sequence[str]) -> tuple[str, ...] | None:
    """The columns that a first line of names says; None where it holds values."""
    names = (name.strip().lower().replace("-", "_") for name in fields)
    columns = tuple(_OTHER_NAMES.get(name, name) for name in names)
    return columns if columns[0] == "query" and {*_BEIR} <= {*columns} else None


def _columns(rows: Sequence[Sequence[str]]) -> tuple[str, ...] | None:
    """The columns of a file without names; None where they cannot be told."""
    if not rows or sum(len(row) == len(_BEIR) for row in rows) * 2 >= len(rows):
        return _BEIR
    second = [*{row[1] for row in rows if len(row) == len(_TREC)}]
    return _TREC if len(second) == 1 and _ITERATION.fullmatch(second[0]) else None


def _qrel(fields: list[str], columns: tuple[str, ...] | None) -> Qrel:
    count, least = len(fields), len(columns or _BEIR)
    if count < least:
        names = ", ".join(_TREC if columns == _TREC else _BEIR)
        raise SourceError(SourceFault.FIELD_MISSING, f"{count} fields, not {names}")
    if columns is None:
        detail = f"{count} fields: neither {', '.join(_BEIR)} nor TREC's, whose second is 0 in every line"
        raise SourceError(SourceFault.FIELD_INVALID, detail)
    if count > least:
        detail = f"{count} fields, the first lines have {least}; separate ids with spaces by tabs"
        raise SourceError(SourceFault.FIELD_INVALID, detail)
    query_id, doc_id, relevance = (fields[columns.index(name)].strip() for name in _BEIR)
    return qrel({"query_id": query_id, "doc_id": doc_id, "relevance": as_number(relevance)})


def qrel(record: Mapping[str, Any]) -> Qrel:
    """A judgement from a record; raises `SourceError`."""
    query_id, doc_id = record_id(record, *QUERY_ID), record_id(record, *DOC_ID)
    relevance = record_integer(record, *RELEVANCE)
    if relevance is None:
        raise SourceError(SourceFault.FIELD_MISSING, "no 'relevance'")
    return Qrel(query_id, doc_id, relevance)
