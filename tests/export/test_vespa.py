"""Feeds sent by Vespa's own command line to a server that keeps what it is sent."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from hypercorn.asyncio import serve
from hypercorn.config import Config

from lakerank.errors import ExportError
from lakerank.export.format import Target
from lakerank.export.search import vespa_documents, vespa_lists

from .conftest import make_list


class Vespa:
    """The document API by its reference: POST puts, PUT updates, DELETE removes. HTTP/2, as the feeder asks."""

    def __init__(self) -> None:
        self.operations: list[tuple[str, str, str, dict[str, object]]] = []
        listening = socket.create_server(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        self.descriptor = listening.detach()  # hypercorn closes it
        self.stop = threading.Event()

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        if scope["type"] != "http":
            raise NotImplementedError("no lifespan")
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        _, _, version, namespace, kind, docid, key = scope["raw_path"].decode().split("/")
        fields = json.loads(body)["fields"] if body else {}
        self.operations.append((scope["method"], f"{version}/{namespace}:{kind}/{docid}", unquote(key), fields))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": b'{"id": "", "pathId": ""}'})

    def run(self) -> None:
        config = Config()
        config.bind = [f"fd://{self.descriptor}"]
        config.errorlog = None
        with asyncio.Runner() as runner:
            runner.run(serve(self, config, shutdown_trigger=self._stopped))

    async def _stopped(self) -> None:
        while not self.stop.is_set():
            await asyncio.sleep(0.05)


@pytest.fixture
def vespa() -> Iterator[Vespa]:
    server = Vespa()
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    yield server
    server.stop.set()
    thread.join()


def feed(vespa: Vespa, path: Path) -> dict[str, object]:
    """`vespa feed` of a file; what it says of it."""
    command = [str(Path(sys.executable).parent / "vespa"), "feed", str(path)]
    command += ["--target", f"http://127.0.0.1:{vespa.port}", "--connections", "1", "--compression", "none"]
    environment = {"VESPA_CLI_HOME": str(path.parent / "home"), "VESPA_CLI_CACHE_DIR": str(path.parent / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_lists_are_put_under_their_queries(vespa, lists, write):
    messages = feed(vespa, write("vespa-lists", lists, name="mine:ranking"))
    assert messages["feeder.ok.count"] == len(lists)
    result = {
        key: fields
        for method, kind, key, fields in vespa.operations
        if (method, kind) == ("POST", "v1/mine:ranking/docid")
    }
    assert result.keys() == {ranking.key for ranking in lists}
    for ranking in lists:
        fields = result[ranking.key]
        assert fields["query_id"] == ranking.key
        assert fields["doc_ids"] == [row.doc_id for row in ranking.rows]
        assert fields["labels"] == [row.label for row in ranking.rows]
        assert [float(np.float32(value)) for value in fields["relevance"]] == [row.relevance for row in ranking.rows]


def test_removed_lists_are_removed_and_documents_updated(vespa, lists, tmp_path):
    documents = vespa_documents(Target("mine:product", field="relevance"))
    operations = [
        vespa_lists(Target()).remove(lists[0].key),
        documents.encode(lists[1]),
        documents.remove(lists[2].key),
    ]
    path = tmp_path / "feed.jsonl"
    path.write_bytes(b"".join(operations))
    assert feed(vespa, path)["feeder.ok.count"] == 3
    result = {(method, kind, key): fields for method, kind, key, fields in vespa.operations}
    cells = {row.query_id: pytest.approx(row.relevance) for row in lists[1].rows}
    assert result == {
        ("DELETE", "v1/lakerank:ranking/docid", lists[0].key): {},
        ("PUT", "v1/mine:product/docid", lists[1].key): {"relevance": {"assign": {"cells": cells}}},
        ("PUT", "v1/mine:product/docid", lists[2].key): {"relevance": {"assign": None}},
    }


@pytest.mark.parametrize("key", ["", "bell\a", "\ufdd0", "\U0001ffff"])
def test_ids_that_vespa_refuses_are_refused_here(key):
    with pytest.raises(ExportError, match="id"):
        vespa_lists(Target()).encode(make_list(key, ["d"], 0))
