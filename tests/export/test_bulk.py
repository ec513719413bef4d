"""Bulk requests sent by OpenSearch's own client to a server that keeps what it is sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from opensearchpy import OpenSearch
from running import running

from lakerank.errors import ExportError
from lakerank.export.format import Target
from lakerank.export.search import opensearch_documents, opensearch_lists

from .conftest import make_list


class Index(ThreadingHTTPServer):
    """Does with a bulk request what its reference says: index, update with a partial document, delete."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.documents: dict[str, dict[str, object]] = {}

    def apply(self, action: str, key: str, body: dict[str, object] | None) -> int:
        if action == "index":
            self.documents[key] = body or {}
            return 200
        if key not in self.documents:
            return 404
        if action == "delete":
            del self.documents[key]
        else:
            self.documents[key] |= body["doc"]
        return 200


class _Handler(BaseHTTPRequestHandler):
    server: Index
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        lines = iter(self.rfile.read(int(self.headers["Content-Length"])).split(b"\n")[:-1])
        items = []
        for line in lines:
            ((action, where),) = json.loads(line).items()
            body = None if action == "delete" else json.loads(next(lines))
            assert where["_index"] == "ranking"
            assert len(where["_id"].encode()) <= 512
            items.append({action: {"_id": where["_id"], "status": self.server.apply(action, where["_id"], body)}})
        errors = any(item["status"] >= 400 for each in items for item in each.values())
        answer = json.dumps({"took": 1, "errors": errors, "items": items}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""


@pytest.fixture
def index() -> Iterator[Index]:
    with running(Index()) as server:
        yield server


def send(index: Index, body: bytes) -> dict[str, object]:
    with OpenSearch([{"host": "127.0.0.1", "port": index.server_address[1]}]) as client:
        return client.bulk(body=body)


def test_lists_arrive_as_documents_of_their_queries(index, lists, write):
    path: Path = write("opensearch-lists", lists, name="ranking")
    assert send(index, path.read_bytes())["errors"] is False
    assert index.documents.keys() == {ranking.key for ranking in lists}
    for ranking in lists:
        assert index.documents[ranking.key]["query_id"] == ranking.key
        result = index.documents[ranking.key]["documents"]
        assert [row["doc_id"] for row in result] == [row.doc_id for row in ranking.rows]
        assert [row["rank"] for row in result] == [row.rank for row in ranking.rows]
        assert [row["label"] for row in result] == [row.label for row in ranking.rows]
        for name in ("logit", "relevance"):
            assert [float(np.float32(row[name])) for row in result] == [getattr(row, name) for row in ranking.rows]


def test_a_removed_list_is_deleted(index, lists, write):
    send(index, write("opensearch-lists", lists, name="ranking").read_bytes())
    form = opensearch_lists(Target("ranking"))
    assert send(index, b"".join(form.remove(ranking.key) for ranking in lists[1:]))["errors"] is False
    assert index.documents.keys() == {lists[0].key}


def test_updates_leave_the_rest_of_a_document_alone(index, lists):
    form = opensearch_documents(Target("ranking", field="rankings"))
    ranking = lists[3]
    index.documents[ranking.key] = {"title": "kept"}
    send(index, form.encode(ranking))
    assert index.documents[ranking.key]["title"] == "kept"
    assert [row["query_id"] for row in index.documents[ranking.key]["rankings"]] == [
        row.query_id for row in ranking.rows
    ]
    send(index, form.remove(ranking.key))
    assert index.documents[ranking.key] == {"title": "kept", "rankings": []}


@pytest.mark.parametrize("key", ["", "é" * 257])
def test_ids_that_no_index_takes_are_refused_with_what_to_do(key):
    with pytest.raises(ExportError, match="takes 1 to 512 as _id"):
        opensearch_lists(Target()).encode(make_list(key, ["d"], 0))
