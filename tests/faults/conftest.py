"""Drivers in processes of their own, and what a lake must look like after anything happened to one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lakerank.lake.publication import current_run
from lakerank.lake.runs import RunPaths, read_manifest
from lakerank.lake.scores import CorruptScoreFile, finished_units, read_unit
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import parquet_bytes

SCORER = "f00d"
PAIRS = 240
SPARK = {
    "spark.master": "local[2]",
    "spark.ui.enabled": False,
    "spark.ui.showConsoleProgress": False,
    "spark.driver.memory": "1g",
    "spark.sql.shuffle.partitions": 2,
    "spark.log.level": "ERROR",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "LAKERANK_TEST_FAULTS" in os.environ:
        return
    few = [item for item in items if item.get_closest_marker("full") is None]
    config.hook.pytest_deselected(items=[item for item in items if item not in few])
    items[:] = few


@dataclass
class Driver:
    """A driver's process, the leader of a session and process group of its own."""

    process: subprocess.Popen[str]
    log: Path
    out: Path

    def wait(self, timeout: float = 240) -> int:
        """Its exit status, once every process of its session has ended: workers outlive a killed driver a little."""
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running after {timeout:.0f} s\n{self.log.read_text()[-4000:]}") from None
        deadline = time.monotonic() + 30
        while members(self.process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not members(self.process.pid), "processes are left over"
        return status

    def kill(self) -> None:
        """SIGKILL to the whole process group, as an out-of-memory killer or a lost machine would."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads(self.out.read_text().strip().splitlines()[-1])

    @property
    def words(self) -> str:
        return self.log.read_text()


def members(session: int) -> list[int]:
    """Processes of a session that are not dead: a Python worker's daemon has a process group of its own."""
    result = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                result.append(int(entry.name))
    return result


@dataclass
class Deployment:
    """Tables of 30 documents and 12 queries, an output folder, and drivers at work on them."""

    storage: Storage
    folder: str
    scratch: Path
    drivers: list[Driver] = field(default_factory=list)

    @property
    def output(self) -> str:
        return join(self.folder, "out")

    def paths(self, run_id: str = "r") -> RunPaths:
        return RunPaths(self.output, run_id)

    def write_tables(self) -> None:
        documents = {"doc_id": [f"d{i:02}" for i in range(30)], "text": [f"document {i}" for i in range(30)]}
        queries = {"query_id": [f"q{i:02}" for i in range(12)], "text": [f"query {i}" for i in range(12)]}
        pairs = [(q, (q * 7 + k) % 30) for q in range(12) for k in range(20)]
        candidates = {"query_id": [f"q{q:02}" for q, _ in pairs], "doc_id": [f"d{d:02}" for _, d in pairs]}
        for name, columns in {"documents": documents, "queries": queries, "candidates": candidates}.items():
            self.storage.replace(join(self.folder, f"{name}.parquet"), parquet_bytes(pa.table(columns), 4))

    def start(
        self, spark: dict[str, Any] | None = None, environment: dict[str, str] | None = None, **settings: Any
    ) -> Driver:
        """Start a driver; settings as `job.py` takes them."""
        number = len(self.drivers)
        options = {name: getattr(self.storage.options, name) for name in ("endpoint_url", "region")}
        values = {"tables": self.folder, "output": self.output, "storage": options} | settings
        values["spark"] = SPARK | {"spark.local.dir": str(self.scratch / f"spark-{number}")} | (spark or {})
        file, log, out = (self.scratch / f"{number}.{kind}" for kind in ("json", "log", "out"))
        file.write_text(json.dumps(values))
        with log.open("w") as err, out.open("w") as std:
            process = subprocess.Popen(
                [sys.executable, str(Path(__file__).parent / "job.py"), str(file)],
                stdout=std, stderr=err, text=True, start_new_session=True, cwd=self.scratch,
                env=os.environ | {"PYSPARK_PYTHON": sys.executable} | (environment or {}),
            )  # fmt: skip
        driver = Driver(process, log, out)
        self.drivers.append(driver)
        return driver

    def ranked(self, run_id: str = "r") -> dict[str, bytes]:
        folder = self.paths(run_id).ranked
        return {name: self.storage.read_bytes(join(folder, name)) for name in self.storage.list_names(folder)}

    def scored(self) -> tuple[int, dict[str, str | None]]:
        """Pairs in whole unit files, and each such file's version: what is written once is never written again."""
        pairs, versions = 0, {}
        for unit in finished_units(self.storage, self.output, SCORER):
            try:
                pairs += read_unit(self.storage, self.output, SCORER, unit).num_rows
            except CorruptScoreFile:
                continue
            address = join(self.output, "scores", f"scorer={SCORER}", f"{unit}.parquet")
            versions[address] = self.storage.version(address)
        return pairs, versions

    def recover(self, expected: dict[str, bytes], **settings: Any) -> Driver:
        """Run the same command again: it must score what is missing and no more, and publish the expected bytes."""
        before, versions = self.scored()
        driver = self.start(**settings)
        assert driver.wait() == 0, driver.words
        if not driver.summary.get("stages"):  # published before: nothing was run
            assert before == PAIRS
        else:
            assert driver.summary["pairs"] == PAIRS - before, driver.summary
        after, now = self.scored()
        assert after == PAIRS
        assert {address: now[address] for address in versions} == versions, "scored again"
        self.check_published(expected)
        return driver

    def check_published(self, expected: dict[str, bytes], run_id: str = "r") -> None:
        assert self.ranked(run_id) == expected
        current = current_run(self.storage, self.output)
        assert current is not None
        assert current["run_id"] == run_id
        manifest = read_manifest(self.storage, self.output, run_id)
        assert manifest is not None
        assert manifest["counts"]["ranked"] == PAIRS


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    """A lake on local files."""
    yield from _kept(Deployment(Storage(), str(tmp_path / "lake"), tmp_path))


@pytest.fixture
def s3_deployment(s3_storage: Storage, s3_folder: str, tmp_path: Path) -> Iterator[Deployment]:
    """A lake on the S3 server."""
    yield from _kept(Deployment(s3_storage, s3_folder, tmp_path))


def _kept(deployment: Deployment) -> Iterator[Deployment]:
    deployment.write_tables()
    yield deployment
    for driver in deployment.drivers:
        for process in members(driver.process.pid):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Name and bytes of what an undisturbed run writes into ranked/."""
    folder = tmp_path_factory.mktemp("undisturbed")
    deployment = Deployment(Storage(), str(folder / "lake"), folder)
    deployment.write_tables()
    driver = deployment.start()
    assert driver.wait() == 0, driver.words
    assert driver.summary["pairs"] == driver.summary["scored"] == PAIRS
    assert driver.summary["units"] >= 6, "or a crash would lose all or nothing"
    return deployment.ranked()


@pytest.fixture
def eventually() -> Callable[[Callable[[], Any], Driver], None]:
    """Wait until something holds, while a driver is running."""

    def wait(holds: Callable[[], Any], driver: Driver) -> None:
        while not holds():
            assert driver.process.poll() is None, driver.words
            time.sleep(0.002)

    return wait


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    yield from _mounted(tmp_path / "small", "64k")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    yield from _mounted(tmp_path / "disk", "4m")


def _mounted(folder: Path, size: str) -> Iterator[Path]:
    if os.geteuid():
        pytest.skip("only root can mount a small file system")
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)
