"""A relay before an S3 server that does what a bad network does, to requests named one by one or to a share of all."""

from __future__ import annotations

import itertools
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

BUSY = b"<Error><Code>SlowDown</Code><Message>Please wait.</Message></Error>"

#: What a network and a busy store do to a request. A number is a status to answer with, without asking the server.
FAULTS = (503, "reset", "stall", "truncate", "lose the answer")


class FaultyS3(ThreadingHTTPServer):
    """Relays requests, and for as many as there are `faults`, or for every `every`-th one, misbehaves:

    - a number: that HTTP status, and the server is not asked;
    - "reset": the connection is reset, and the server is not asked;
    - "stall": the server is asked, and nothing more is heard for `stall_s`;
    - "drip": a byte of the answer's body every tenth of a second, until `enough`;
    - "truncate": half of the answer's body, then the end of the connection;
    - "lose the answer": the server has done as asked, and the connection ends;
    - "ignore conditions": the server is asked without If-Match and If-None-Match, as look-alikes behave.
    """

    daemon_threads = True

    def __init__(self, upstream: str, every: int = 0, kinds: Sequence[int | str] = FAULTS) -> None:
        super().__init__(("127.0.0.1", 0), _Relay)
        self.upstream = urlsplit(upstream).netloc
        self.faults: deque[int | str] = deque()
        self.methods = frozenset({"PUT"})
        self.requests: list[tuple[str, str, str | None]] = []
        self.every = every
        self.stall_s = 20.0
        self.conditions = True
        self.enough = threading.Event()
        self.seen: Counter[int | str] = Counter()
        self._numbers = itertools.count(1)
        self._kinds = itertools.cycle(kinds)
        self._lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def next_fault(self, method: str) -> int | str | None:
        """What is to go wrong with this request, if anything."""
        with self._lock:
            number = next(self._numbers)
            if method in self.methods and self.faults:
                fault = self.faults.popleft()
            elif self.every and number % self.every == 0:
                fault = next(self._kinds)
            else:
                return None
            self.seen[fault] += 1
            return fault

    def handle_error(self, request: object, client_address: object) -> None:
        """Quiet: clients that give up are what this is for."""


class _Relay(BaseHTTPRequestHandler):
    server: FaultyS3
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _relay(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, self.path, self.headers.get("Range")))
        fault = self.server.next_fault(self.command)
        if isinstance(fault, int):
            self._answer(fault, {}, BUSY)
        elif fault == "reset":
            self._reset()
        else:
            status, headers, content = self._ask(body)
            if fault == "stall":
                time.sleep(self.server.stall_s)
            if fault in ("stall", "lose the answer"):
                self._hang_up()
            else:
                self._answer(status, headers, content, str(fault))

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _relay  # noqa: N815 - the server's own names

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        headers = dict(self.headers)
        if not self.server.conditions:
            headers = {
                name: value for name, value in headers.items() if name.lower() not in ("if-match", "if-none-match")
            }
        connection = HTTPConnection(self.server.upstream)
        try:
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], content: bytes, fault: str = "") -> None:
        self.send_response_only(status)
        hop = {"connection", "transfer-encoding", "content-length"}
        for name, value in headers.items():
            if name.lower() not in hop:
                self.send_header(name, value)
        length = headers.get("Content-Length", headers.get("content-length")) if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        for byte in content if fault == "drip" else b"":
            self.wfile.write(bytes([byte]))
            if self.server.enough.wait(0.1):
                self._hang_up()
                return
        if self.command != "HEAD" and fault != "drip":
            self.wfile.write(content[: len(content) // 2] if fault == "truncate" else content)
        if fault == "truncate":
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""
