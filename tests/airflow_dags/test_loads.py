"""Loads of exports: into a real PostgreSQL, and over HTTP into a small server that answers as OpenSearch does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest
from postgresql import postgresql, why_no_server
from running import running

from lakerank.export.format import Change, ExportList, PartLimits, Target
from lakerank.export.job import FORMATS, Export, finish
from lakerank.lake.storage import Storage
from lakerank.records import RankedDocument

from .conftest import Airflow

pytestmark = pytest.mark.nightly

LOAD = """
from airflow.sdk.exceptions import AirflowException
from lake_tasks.load import ExportFiles, load

result = []
for to, where in {steps!r}:
    try:
        result.append(load(ExportFiles(to), **where))
    except AirflowException as error:
        result.append(type(error).__name__ + ": " + str(error))
"""


def ranking(query: str, documents: str) -> ExportList:
    """A list of documents with ids of a letter each."""
    rows = [
        RankedDocument(query, document, rank, -rank / 4, 0.5, 1, None if rank == 1 else rank, rank == 2)
        for rank, document in enumerate(documents, start=1)
    ]
    return ExportList(query, tuple(rows))


def export(to: Path, form: str, run: str, lists: Sequence[ExportList], since: str = "", removed: str = "") -> str:
    """A finished export of a list a part, as jobs/export.py writes it; `removed` are queries of a letter each."""
    to.mkdir()
    made, reports = FORMATS[form](Target()), []

    def write(kind: str, name: str, data: bytes, rows: int) -> None:
        (to / name).write_bytes(data)
        checksum = hashlib.sha256(data).hexdigest()
        reports.append({"kind": kind, "name": name, "rows": rows, "lists": 1, "bytes": len(data), "sha256": checksum})

    for item in lists:
        write("part", f"part-{item.key}", made.finish([made.encode(item)]), len(item.rows))
    for query in removed:
        if made.remove:
            write("part", f"part-{query}", made.remove(query), 0)
        else:
            write("removal", f"_removed-{query}.jsonl", json.dumps({"query_id": query}).encode() + b"\n", 0)
    reports.append({"kind": Change.ADDED.value, "name": "", "lists": len(lists)})
    job = Export("out", run, since or None, form, Target(), str(to), None, PartLimits(9, 9), None, "", "")
    finish(Storage(), job, "made from", reports)
    return str(to)


def loads(airflow: Airflow, into: str, connection: dict[str, Any], *steps: tuple[str, dict[str, str]]) -> list[Any]:
    """What each load of an export returned or raised, one after the other."""
    targets = [(to, {"into": into, "conn_id": "target", **where}) for to, where in steps]
    environment = {"AIRFLOW_CONN_TARGET": json.dumps(connection)}
    return list(Airflow(airflow.home, **environment).python(LOAD.format(steps=targets)))


def test_postgresql_has_one_run_whole_or_the_other(small_airflow: Airflow, tmp_path: Path) -> None:
    if why := why_no_server():
        pytest.skip(why)
    whole = export(tmp_path / "r1", "csv", "r1", [ranking("a", "xyz"), ranking("b", "y"), ranking("c", "x")])
    changes = export(tmp_path / "r2", "csv", "r2", [ranking("a", "zx")], since="r1", removed="b")
    late = export(tmp_path / "r4", "csv", "r4", [ranking("a", "y")], since="r3")
    torn = export(tmp_path / "r5", "csv", "r5", [ranking("a", "y"), ranking("b", "y")])
    (tmp_path / "r5" / "part-b").write_bytes(b"query_id\n")
    table, other = {"table": "ranked"}, {"table": "search.lists"}
    with postgresql() as folder, psycopg.connect(host=str(folder), user="lakerank", dbname="postgres") as database:
        database.autocommit = True
        database.execute("CREATE SCHEMA search")
        database.execute("CREATE ROLE reader")
        connection = {"conn_type": "postgres", "host": str(folder), "login": "lakerank", "schema": "postgres"}
        first = loads(small_airflow, "postgres", connection, (whole, table), (whole, other))
        assert first[0] == {"table": "ranked", "run_id": "r1", "since": None, "rows": 5}
        database.execute("GRANT SELECT ON ranked TO reader; CREATE VIEW best AS SELECT * FROM ranked WHERE rank = 1")
        assert database.execute("SELECT * FROM search.lists WHERE query_id = 'a' ORDER BY rank").fetchall() == [
            ("a", "x", 1, -0.25, 0.5, 1, None, False),
            ("a", "y", 2, -0.5, 0.5, 1, 2, True),
            ("a", "z", 3, -0.75, 0.5, 1, 3, False),
        ]

        steps = [(changes, table), (changes, table), (late, table), (torn, table)]
        loaded, again, of_another, damaged = loads(small_airflow, "postgres", connection, *steps)
        assert loaded == again == {"table": "ranked", "run_id": "r2", "since": "r1", "rows": 2}
        assert of_another.startswith("AirflowFailException: table ranked has run r2, and this export is what changed")
        assert "not the bytes that the export wrote" in damaged
        assert database.execute("SELECT query_id, doc_id FROM ranked ORDER BY query_id, rank").fetchall() == [
            ("a", "z"), ("a", "x"), ("c", "x"),
        ]  # fmt: skip
        assert database.execute("SELECT run_id FROM ranked_run").fetchall() == [("r2",)]
        database.execute("SET ROLE reader")
        assert database.execute("SELECT count(*) FROM ranked").fetchone() == (3,), "rights are lost with the old rows"


class SearchServer(ThreadingHTTPServer):
    """Indexes with documents and metadata, aliases, and bulk requests: what a load needs of OpenSearch's REST API."""

    def __init__(self) -> None:
        self.indexes: dict[str, dict[str, Any]] = {}
        self.metadata: dict[str, dict[str, Any]] = {}
        self.aliases: dict[str, str] = {}
        self.requests: list[str] = []
        super().__init__(("127.0.0.1", 0), _Answer)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        index, _, action = path.strip("/").partition("/")
        name = self.aliases.get(index, index)
        if index == "_alias":
            known = {self.aliases[action]: {}} if action in self.aliases else None
            return (200, known) if known else (404, {"error": "alias missing", "status": 404})
        if index == "_aliases":
            for ((kind, move),) in (entry.items() for entry in json.loads(body)["actions"]):
                self.aliases.pop(move["alias"], None) if kind == "remove" else None
                if kind == "add":
                    self.aliases[move["alias"]] = move["index"]
            return 200, {"acknowledged": True}
        if method == "PUT" and not action:
            if name in self.indexes:
                return 400, {"error": {"type": "resource_already_exists_exception"}, "status": 400}
            self.indexes[name], self.metadata[name] = {}, json.loads(body)["mappings"]["_meta"]
            return 200, {"acknowledged": True}
        if name not in self.indexes:
            return 404, {"error": {"type": "index_not_found_exception"}, "status": 404}
        return 200, self.in_index(method, name, action, body)

    def in_index(self, method: str, name: str, action: str, body: bytes) -> Any:
        if method == "DELETE":
            del self.indexes[name], self.metadata[name]
        elif action == "_mapping" and method == "PUT":
            self.metadata[name] = json.loads(body)["_meta"]
        elif action == "_mapping":
            return {name: {"mappings": {"_meta": self.metadata[name]}}}
        elif action == "_count":
            return {"count": len(self.indexes[name])}
        elif action == "_bulk":
            return self.bulk(self.indexes[name], [json.loads(line) for line in body.splitlines()])
        return {"acknowledged": True}

    def bulk(self, documents: dict[str, Any], lines: list[dict[str, Any]]) -> Any:
        items: list[Any] = []
        entries = iter(lines)
        for entry in entries:
            ((action, target),) = entry.items()
            key, status = target["_id"], 200
            if action != "delete":
                document = next(entries)
            if action == "index" and document["documents"][0]["doc_id"] == "!":
                status = 429
            elif action == "index":
                documents[key] = document
            elif key not in documents:
                status = 404
            elif action == "delete":
                del documents[key]
            else:
                documents[key] |= document["doc"]
            items.append({action: {"_id": key, "status": status}})
        return {"errors": any(item["status"] >= 300 for entry in items for item in entry.values()), "items": items}


class _Answer(BaseHTTPRequestHandler):
    server: SearchServer

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append(f"{self.command} {self.path}")
        status, value = self.server.answer(self.command, self.path, body)
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def search_server() -> Iterator[SearchServer]:
    with running(SearchServer()) as server:
        yield server


def test_alias_moves_to_a_run_when_all_its_lists_are_there(
    small_airflow: Airflow, search_server: SearchServer, tmp_path: Path
) -> None:
    form = "opensearch-lists"
    whole = export(tmp_path / "r1", form, "run-T1Z", [ranking("a", "xy"), ranking("b", "y")])
    changes = export(tmp_path / "r2", form, "run-T2Z", [ranking("a", "z")], since="run-T1Z", removed="b")
    full = export(tmp_path / "r3", form, "run-T3Z", [ranking("a", "!"), ranking("b", "y")])
    last = export(tmp_path / "r4", form, "run-T4Z", [ranking("c", "xyz")])
    updates = export(tmp_path / "r5", "opensearch-documents", "run-T4Z", [ranking("p1", "x"), ranking("p2", "y")])
    search_server.indexes["products"] = {"p1": {"title": "stays"}}
    search_server.metadata["products"] = {}
    alias, server = {"index": "ranking"}, search_server
    connection = {"conn_type": "http", "host": "127.0.0.1", "port": server.server_port}
    steps = [(whole, alias), (whole, alias), (changes, alias), (whole, alias), (changes, alias)]
    first, again, changed, back, changed = loads(small_airflow, "opensearch", connection, *steps)
    assert back == first
    assert first == again == {"index": "ranking", "run_id": "run-T1Z", "since": None, "lists": 2}
    assert changed["run_id"] == "run-T2Z"
    assert server.aliases == {"ranking": "ranking-run-t1z-again"}
    assert server.metadata["ranking-run-t1z-again"] == {"lakerank_run": "run-T2Z"}
    lists = server.indexes["ranking-run-t1z-again"]
    assert {query: [d["doc_id"] for d in value["documents"]] for query, value in lists.items()} == {"a": ["z"]}

    (refused,) = loads(small_airflow, "opensearch", connection, (full, alias))
    assert refused.startswith("AirflowException: 1 of 1 items failed, the first: {'_id': 'a', 'status': 429}")
    assert server.aliases == {"ranking": "ranking-run-t1z-again"}, "readers see lists that are not all there"

    steps = [(last, alias), (changes, alias), (updates, {"index": "products"})]
    whole_run, of_another, documents = loads(small_airflow, "opensearch", connection, *steps)
    assert whole_run["lists"] == 1
    assert of_another.startswith("AirflowFailException: alias ranking has run run-T4Z")
    assert server.aliases == {"ranking": "ranking-run-t4z"}
    assert set(server.indexes) == {"ranking-run-t4z", "products"}
    assert documents["missing"] == 1
    assert server.indexes["products"]["p1"]["title"] == "stays"
    assert set(server.indexes["products"]) == {"p1"}
