"""Bulk requests of OpenSearch and Elasticsearch, as newline-delimited JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lakerank.export.format import Format, Target
from lakerank.export.ids import checked_bulk_id
from lakerank.export.lists import ExportList, shortest
from lakerank.records import RankedDocument


def opensearch_lists(target: Target) -> Format:
    """A document a query, under the query's id, with its ranked documents in `documents`; replaced whole."""

    def encode(one: ExportList) -> bytes:
        documents = [{"doc_id": row.doc_id, **_grades(row)} for row in one.rows]
        return _action("index", target, one.key) + json_line({"query_id": one.key, "documents": documents})

    columns = ("doc_id", "rank", "relevance", "logit", "label")
    return Format(".ndjson", columns, encode, remove=lambda key: _action("delete", target, key))


def opensearch_documents(target: Target) -> Format:
    """An update a document, which sets one field of it to the queries it is ranked for.

    The document is the index's own: a document that no query ranks any more keeps everything but that field's values.
    """

    def update(key: str, queries: list[dict[str, Any]]) -> bytes:
        return _action("update", target, key) + json_line({"doc": {target.field: queries}})

    def encode(one: ExportList) -> bytes:
        return update(one.key, [{"query_id": row.query_id, **_grades(row)} for row in one.rows])

    columns = ("query_id", "rank", "relevance", "logit", "label")
    return Format(".ndjson", columns, encode, by="doc_id", remove=lambda key: update(key, []))


def json_line(value: Mapping[str, Any]) -> bytes:
    """Compact JSON and a line end; control characters and line ends within strings are escaped by JSON itself."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _action(name: str, target: Target, key: str) -> bytes:
    index = {"_index": target.name} if target.name else {}
    return json_line({name: {**index, "_id": checked_bulk_id(key)}})


def _grades(row: RankedDocument) -> dict[str, Any]:
    relevance, logit = shortest(row.relevance), shortest(row.logit)
    return {"rank": row.rank, "relevance": relevance, "logit": logit, "label": row.label}
