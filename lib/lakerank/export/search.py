"""Feeds for search engines: bulk requests of OpenSearch and Elasticsearch, and Vespa's; a JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from lakerank.errors import ExportError
from lakerank.export.format import ExportList, Format, Key, Target, shortest
from lakerank.records import RankedDocument

#: Vespa's namespace and document type where none are given.
_VESPA_NAME = "lakerank:ranking"

#: Elasticsearch and OpenSearch take no longer _id.
_MOST_ID_BYTES = 512

#: What an index gets of each ranked pair.
_GRADES = ("rank", "relevance", "logit", "label")


def opensearch_lists(target: Target) -> Format:
    """A document a query, under the query's id, with its ranked documents in `documents`; replaced whole."""

    def encode(ranked: ExportList) -> bytes:
        documents = [{"doc_id": row.doc_id, **_grades(row)} for row in ranked.rows]
        return _action("index", target, ranked.key) + _json_line({"query_id": ranked.key, "documents": documents})

    return Format(".ndjson", ("doc_id", *_GRADES), encode, remove=partial(_action, "delete", target))


def opensearch_documents(target: Target, by: Key = "doc_id") -> Format:
    """An update a document, which sets one field of it to the queries it is ranked for; or a group of documents, to the
    queries its best is ranked for, and which that is.

    The document is the index's own: one that no query ranks any more keeps everything but that field's values.
    """
    ids = ("query_id",) if by == "doc_id" else ("query_id", "doc_id")

    def update(key: str, queries: list[dict[str, Any]]) -> bytes:
        return _action("update", target, key) + _json_line({"doc": {target.field: queries}})

    def encode(ranked: ExportList) -> bytes:
        return update(ranked.key, [{name: getattr(row, name) for name in ids} | _grades(row) for row in ranked.rows])

    return Format(".ndjson", (*ids, *_GRADES), encode, by=by, remove=lambda key: update(key, []))


def vespa_lists(target: Target) -> Format:
    """A document a query: `query_id`, and the arrays `doc_ids`, `relevance` and `labels` in the order of the ranks."""

    def encode(ranked: ExportList) -> bytes:
        fields = {
            "query_id": ranked.key,
            "doc_ids": [row.doc_id for row in ranked.rows],
            "relevance": [shortest(row.relevance) for row in ranked.rows],
            "labels": [row.label for row in ranked.rows],
        }
        return _json_line({"put": _vespa_document(target, ranked.key), "fields": fields})

    columns = ("doc_id", "rank", "relevance", "label")
    return Format(".jsonl", columns, encode, remove=lambda key: _json_line({"remove": _vespa_document(target, key)}))


def vespa_documents(target: Target, by: Key = "doc_id") -> Format:
    """An update a document, which sets one field of it, a tensor<float>(query{}), to its relevance by query; or a group
    of documents, to its best's, and another field, a map<string,string>, to the best's id by query."""

    def update(key: str, cells: object, best: Mapping[str, str]) -> bytes:
        fields = {target.field: {"assign": cells}}
        fields |= {f"{target.field}_best": {"assign": best}} if by == "group_id" else {}
        return _json_line({"update": _vespa_document(target, key), "fields": fields})

    def encode(ranked: ExportList) -> bytes:
        cells = {row.query_id: shortest(row.relevance) for row in ranked.rows}
        return update(ranked.key, {"cells": cells}, {row.query_id: row.doc_id for row in ranked.rows})

    columns = ("query_id", "relevance") if by == "doc_id" else ("query_id", "doc_id", "relevance")
    return Format(".jsonl", columns, encode, by=by, remove=lambda key: update(key, None, {}))


def _vespa_document(target: Target, key: str) -> str:
    """A document's id in Vespa, which takes text as XML 1.1 has it: of control characters only tab and line ends.

    Source: com.yahoo.text.Text.isTextCharacter in vespa-engine/vespa.
    """
    if not key:
        raise ExportError("an id is empty: Vespa needs one; give the document or query an id")
    for character in key:
        point = ord(character)
        control = point < 0x20 and character not in "\t\n\r"
        if control or 0xFDD0 <= point <= 0xFDDF or (point > 0xFFFF and point & 0xFFFF >= 0xFFFE):
            raise ExportError(
                f"id {key[:40]!r} holds U+{point:04X}, which Vespa refuses in an id; rename it in the lake"
            )
    namespace, _, kind = (target.name or _VESPA_NAME).partition(":")
    return f"id:{namespace}:{kind}::{key}"


def _json_line(value: Mapping[str, Any]) -> bytes:
    """Compact JSON and a line end; control characters and line ends within strings are escaped by JSON itself."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _action(name: str, target: Target, key: str) -> bytes:
    size = len(key.encode())
    if not 0 < size <= _MOST_ID_BYTES:
        raise ExportError(
            f"id {key[:40]!r}… has {size} bytes: an index takes 1 to {_MOST_ID_BYTES} as _id; shorten the lake's ids"
        )
    index = {"_index": target.name} if target.name else {}
    return _json_line({name: {**index, "_id": key}})


def _grades(row: RankedDocument) -> dict[str, Any]:
    values = (row.rank, shortest(row.relevance), shortest(row.logit), row.label)
    return dict(zip(_GRADES, values, strict=True))
