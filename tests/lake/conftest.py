"""One S3 server for the session, and every lake test on both local files and S3."""

from __future__ import annotations

import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import pytest
from moto.server import ThreadedMotoServer

from lakerank.lake.storage import Storage, StorageOptions, join

BUCKET = "lake"


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A real HTTP server that speaks S3, with one bucket, and the environment's keys set for it."""
    with pytest.MonkeyPatch.context() as environment:
        for name in ("AWS_PROFILE", "AWS_CA_BUNDLE", "AWS_ENDPOINT_URL", "AWS_SESSION_TOKEN"):
            environment.delenv(name, raising=False)
        environment.setenv("AWS_ACCESS_KEY_ID", "AKIATESTTESTTESTTEST")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-that-must-not-be-shown")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        client = boto3.client("s3", endpoint_url=endpoint)
        client.create_bucket(Bucket=BUCKET)
        client.close()
        yield endpoint
        server.stop()


@pytest.fixture
def s3_storage(s3_endpoint: str) -> Storage:
    return Storage(StorageOptions(endpoint_url=s3_endpoint, region="us-east-1"))


@pytest.fixture(params=["local", "s3"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Storage, str]:
    """A storage and the name of an empty folder in it."""
    if request.param == "local":
        return Storage(), str(tmp_path)
    storage: Storage = request.getfixturevalue("s3_storage")
    return storage, join(f"s3://{BUCKET}", uuid.uuid4().hex)


@pytest.fixture
def empty_folder(lake: tuple[Storage, str]) -> str:
    return lake[1]


@pytest.fixture
def storage(lake: tuple[Storage, str]) -> Storage:
    return lake[0]


class FaultyS3(ThreadingHTTPServer):
    """Stands before the S3 server and, for as many requests as there are faults, does what a bad network does.

    A fault is an HTTP status to answer without asking the server, or "lose the answer": the request is carried out,
    and the connection then dropped.
    """

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Relay)
        self.upstream = urlsplit(upstream).netloc
        self.faults: deque[int | str] = deque()
        self.methods = frozenset({"PUT"})
        self.requests: list[tuple[str, str, str | None]] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Relay(BaseHTTPRequestHandler):
    server: FaultyS3
    protocol_version = "HTTP/1.1"

    def _relay(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, self.path, self.headers.get("Range")))
        faulty = self.command in self.server.methods and self.server.faults
        fault = self.server.faults.popleft() if faulty else None
        if isinstance(fault, int):
            self._answer(fault, {}, b"<Error><Code>SlowDown</Code><Message>Please wait.</Message></Error>")
            return
        connection = HTTPConnection(self.server.upstream)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if fault == "lose the answer":
            self.close_connection = True
            self.connection.close()
            return
        self._answer(answer.status, dict(answer.getheaders()), content)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _relay  # noqa: N815 - the server's own names

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        hop = {"connection", "transfer-encoding", "content-length"}
        for name, value in headers.items():
            if name.lower() not in hop:
                self.send_header(name, value)
        length = headers.get("Content-Length", headers.get("content-length")) if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""


@pytest.fixture
def faulty_s3(s3_endpoint: str) -> Iterator[FaultyS3]:
    server = FaultyS3(s3_endpoint)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def together() -> Callable[[Callable[[int], object], int], list[object]]:
    """Run a function in many threads that all start at once; the results by thread number."""

    def run(function: Callable[[int], object], threads: int) -> list[object]:
        results: list[object] = [None] * threads
        start = threading.Barrier(threads)

        def work(number: int) -> None:
            start.wait()
            try:
                results[number] = function(number)
            except Exception as error:
                results[number] = error

        pool = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        for thread in pool:
            thread.start()
        for thread in pool:
            thread.join()
        return results

    return run
