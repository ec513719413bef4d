"""A planted secret, given in every way one can be given, is in no file of a run and in nothing that is printed."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.nightly

#: Passwords that the server takes, as they stand in an address; the second after the first was changed.
PASSWORDS = ("first%2Fplanted", "second-planted")
SECRETS = (*PASSWORDS, "signed-planted", "wrong-planted", "spark-planted", "key-planted", "word-planted", "env-planted")

#: Command lines, one after the other in a process.
SCRIPT = """\
import json, sys
from lakerank.cli import main
for arguments in json.load(sys.stdin):
    try:
        main(arguments)
    except SystemExit as done:
        print("exit", done.code, flush=True)
"""


class _Tables(ThreadingHTTPServer):
    """Tables behind a password and a signature."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.folder = str(folder)

    def address(self, name: str, password: str) -> str:
        return f"http://user:{password}@127.0.0.1:{self.server_port}/{name}?sig=signed-planted&se=2030"

    def handle_error(self, request: object, client_address: object) -> None:
        """Quiet: a client takes what it needs of an answer."""


class _Request(SimpleHTTPRequestHandler):
    server: _Tables

    def __init__(self, request: Any, client_address: Any, server: _Tables) -> None:
        super().__init__(request, client_address, server, directory=server.folder)

    def do_GET(self) -> None:
        users = [f"user:{unquote(password)}".encode() for password in PASSWORDS]
        given = self.headers.get("Authorization", "")
        if given in [f"Basic {base64.b64encode(user).decode()}" for user in users] and "sig=signed" in self.path:
            super().do_GET()
        else:
            self.send_error(401)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""


@pytest.fixture
def tables(tmp_path: Path) -> Iterator[_Tables]:
    folder = tmp_path / "tables"
    folder.mkdir()
    pq.write_table(pa.table({"doc_id": ["d1", "d2"], "text": ["red apple", "locomotive"]}), folder / "documents")
    pq.write_table(pa.table({"query_id": ["q"], "text": ["apple"]}), folder / "queries")
    pq.write_table(pa.table({"query_id": ["q", "q"], "doc_id": ["d1", "d2"]}), folder / "candidates")
    pq.write_table(pa.table({"query_id": ["q"], "doc_id": ["d1"], "relevance": [1]}), folder / "qrels")
    with _Tables(folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def _arguments(tables: _Tables, checkpoint: Path, folder: Path, password: str) -> list[str]:
    """A config file with the password in two of its tables, and the rest on the command line."""
    names = ("documents", "queries", "candidates", "qrels")
    in_file = {name: tables.address(name, password) for name in names[:2]}
    lake = "".join(f"  {name}: {address}\n" for name, address in in_file.items())
    config = folder / f"{unquote(password)[:5]}.yaml"
    config.write_text(
        f"lake:\n{lake}  candidates: x\n  output: {folder / 'out'}\n"
        "  storage: {endpoint_url: 'http://key:key-planted@127.0.0.1:9', max_attempts: 1}\nmodel:\n"
        f"  path: {checkpoint}\nspark:\n  conf: {{spark.hadoop.fs.s3a.secret.key: spark-planted}}\n"
    )
    given = [f"lake.{name}={tables.address(name, password)}" for name in names[2:]]
    given.append("spark.conf.spark.driver.extraJavaOptions=-Dpassword=spark-planted")
    return ["--config", str(config), *(word for setting in given for word in ("--set", setting))]


def test_no_secret_is_stored_or_printed(tables: _Tables, tiny_checkpoint: Path, tmp_path: Path) -> None:
    first, second = (_arguments(tables, tiny_checkpoint, tmp_path, password) for password in PASSWORDS)
    wrong = ["--set", f"lake.documents={tables.address('documents', 'wrong-planted')}"]
    summary = ["--summary", tables.address("summary.json", PASSWORDS[0])]
    (tmp_path / "broken.yaml").write_text("lake:\n  documents: 'https://u:word-planted@h\n: {")
    request = {"model": "m", "query": "q", "documents": [{"image": "https://h/a?X-Amz-Signature=word-planted"}]}
    (tmp_path / "request.json").write_text(json.dumps(request))
    commands: list[tuple[int, list[str]]] = [
        (0, ["rerank", *first, "--run-id", "a", "--stage", "plan", "-v", "--log-format", "json"]),
        (0, ["rerank", *second, "--run-id", "a", "--stage", "score,publish", *summary]),
        (0, ["rerank", *first, "--run-id", "a"]),
        (0, ["evaluate", *second, "--run-id", "a"]),
        (0, ["export", *first, "--run-id", "a", "--format", "csv", "--to", str(tmp_path / "out" / "csv")]),
        (1, ["rerank", *first, *wrong, "--run-id", "b", "-v"]),
        (1, ["rerank", *first, "--run-id", "b", "--set", "lake.documents=['http://u:word-planted@h/a']"]),
        (2, ["rerank", *first, "--run-id", "b", "--set", "lake.secret.key.x=word-planted"]),
        (2, ["rerank", *first, "--run-id", "b", "--set", "lake.documents='http://u:word-planted@h/a"]),
        (2, ["rerank", "--config", str(tmp_path / "broken.yaml"), "--run-id", "b"]),
        (2, ["rerank", *first, "https://u:word-planted@h/a"]),
        (1, ["export", *first, "--run-id", "a", "--format", "csv", "--to", "https://u:word-planted@h/a"]),
        (2, ["score", str(tmp_path / "request.json")]),
        (1, ["ingest", "https://u:word-planted@127.0.0.1:9/a", "--as", "documents", "--output", str(tmp_path / "x")]),
    ]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=json.dumps([command for _, command in commands]), text=True,
        capture_output=True, check=True, cwd=tmp_path, env=os.environ | {"AWS_SECRET_ACCESS_KEY": "env-planted"},
    )  # fmt: skip
    statuses = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("exit ")]
    assert statuses == [status for status, _ in commands], done.stderr
    assert "not written" in done.stderr, "the summary's store takes no files"
    texts = {"standard output": done.stdout, "standard error": done.stderr}
    texts |= {str(file): _text(file) for folder in ("out", "x") for file in (tmp_path / folder).rglob("*")}
    assert len(texts) > 20
    forms = {form for secret in SECRETS for form in (secret, unquote(secret))} | {"planted"}
    assert [(where, form) for where, text in texts.items() for form in forms if form in text] == []
    assert "config.yaml" in " ".join(texts)


def _text(file: Path) -> str:
    """A file's bytes and, of Parquet, its values and what its footer says."""
    if not file.is_file():
        return ""
    text = file.read_bytes().decode("latin-1")
    if file.suffix == ".parquet":
        table = pq.read_table(file, partitioning=None)
        text += f"{table.to_pylist()} {table.schema.metadata}"
    return text
