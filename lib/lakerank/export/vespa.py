"""Feeds for Vespa, a JSON operation a line, as `vespa feed` takes them."""

from __future__ import annotations

from lakerank.export.bulk import json_line
from lakerank.export.format import Format, Target
from lakerank.export.ids import checked_vespa_id
from lakerank.export.lists import ExportList, shortest

#: Namespace and document type where none are given.
NAME = "lakerank:ranking"


def vespa_lists(target: Target) -> Format:
    """A document a query: `query_id`, and the arrays `doc_ids`, `relevance` and `labels` in the order of the ranks."""

    def encode(one: ExportList) -> bytes:
        fields = {
            "query_id": one.key,
            "doc_ids": [row.doc_id for row in one.rows],
            "relevance": [shortest(row.relevance) for row in one.rows],
            "labels": [row.label for row in one.rows],
        }
        return json_line({"put": _document(target, one.key), "fields": fields})

    columns = ("doc_id", "rank", "relevance", "label")
    return Format(".jsonl", columns, encode, remove=lambda key: json_line({"remove": _document(target, key)}))


def vespa_documents(target: Target) -> Format:
    """An update a document, which sets one field of it, a tensor<float>(query{}), to its relevance by query."""

    def update(key: str, value: object) -> bytes:
        return json_line({"update": _document(target, key), "fields": {target.field: {"assign": value}}})

    def encode(one: ExportList) -> bytes:
        return update(one.key, {"cells": {row.query_id: shortest(row.relevance) for row in one.rows}})

    return Format(".jsonl", ("query_id", "relevance"), encode, by="doc_id", remove=lambda key: update(key, None))


def _document(target: Target, key: str) -> str:
    namespace, _, kind = (target.name or NAME).partition(":")
    return f"id:{namespace}:{kind}::{checked_vespa_id(key)}"
