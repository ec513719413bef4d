"""Fixtures for what touches storage: local files, and an S3 server: moto, or with `make test-s3` Ceph's radosgw."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from faulty_s3 import FaultyS3
from radosgw import Radosgw
from running import running

from lakerank.lake.storage import Storage, StorageOptions, join

BUCKET = "lake"

#: Names the S3 server of this session; moto unless it says otherwise.
SERVER = os.environ.get("LAKERANK_TEST_S3", "moto")

_MEANT_FOR_OTHERS = ("AWS_PROFILE", "AWS_CA_BUNDLE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN")


@dataclass(frozen=True)
class S3Server:
    """A running S3 server with an empty bucket, and the keys it takes."""

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    checks_keys: bool = True

    def environment(self) -> dict[str, str]:
        """What a process needs to be let in."""
        keys = {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}
        return keys | {"AWS_DEFAULT_REGION": "us-east-1"}

    def client(self) -> Any:
        import boto3

        return boto3.client(
            "s3", endpoint_url=self.endpoint, region_name="us-east-1",
            aws_access_key_id=self.access_key, aws_secret_access_key=self.secret_key,
        )  # fmt: skip


@contextmanager
def _moto() -> Iterator[S3Server]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield S3Server(f"http://{host}:{port}", "AKIATESTTESTTESTTEST", "a-secret-that-must-not-be-shown", False)
    finally:
        server.stop()


@contextmanager
def _radosgw() -> Iterator[S3Server]:
    with Radosgw() as server:
        yield S3Server(server.endpoint, server.access_key, server.secret_key)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what talks to the S3 server, so that `make test-s3` finds it wherever it is."""
    for item in items:
        names = getattr(item, "fixturenames", ())
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if "s3_server" in names or ("store" in names and parameters.get("store") != "local"):
            item.add_marker(pytest.mark.s3)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A real HTTP server that speaks S3, with one bucket, and the environment's keys set for it."""
    with pytest.MonkeyPatch.context() as environment, {"moto": _moto, "radosgw": _radosgw}[SERVER]() as server:
        for name in _MEANT_FOR_OTHERS:
            environment.delenv(name, raising=False)
        for name, value in server.environment().items():
            environment.setenv(name, value)
        client = server.client()
        client.create_bucket(Bucket=BUCKET)
        client.close()
        yield server


@pytest.fixture(scope="session")
def s3_endpoint(s3_server: S3Server) -> str:
    return s3_server.endpoint


@pytest.fixture
def s3_storage(s3_endpoint: str) -> Storage:
    return Storage(StorageOptions(endpoint_url=s3_endpoint, region="us-east-1"))


@pytest.fixture
def s3_folder(s3_server: S3Server) -> str:
    """The name of an empty folder in the bucket."""
    return join(f"s3://{BUCKET}", uuid.uuid4().hex)


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Storage, str]:
    """A storage and the name of an empty folder in it."""
    if request.param == "local":
        return Storage(), str(tmp_path)
    return request.getfixturevalue("s3_storage"), request.getfixturevalue("s3_folder")


@pytest.fixture
def faulty_s3(s3_endpoint: str) -> Iterator[FaultyS3]:
    """A relay before the server, without faults until one is set."""
    with running(FaultyS3(s3_endpoint)) as server:
        yield server


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
