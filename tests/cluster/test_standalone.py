"""Spark's own master and two workers on loopback, each with a made-up GPU: the bytes of local[2], whoever is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyspark
import pytest
from running import wait_until

pytestmark = [pytest.mark.spark, pytest.mark.nightly]

ROOT = Path(__file__).parents[2]
SPARK_HOME = Path(pyspark.__file__).parent
DEMO_LAKE = ROOT / "lib" / "lakerank" / "ingest" / "demo_lake"

PATIENCE_S = 300.0

#: What a small machine has not: the sizes of conf/spark-standalone.conf, and the packed environment.
SMALLER = {
    "spark.executor.cores": "1",
    "spark.task.cpus": "1",
    "spark.executor.memory": "512m",
    "spark.driver.memory": "1g",
    "spark.driver.host": "127.0.0.1",
    "spark.sql.shuffle.partitions": "2",
    "spark.pyspark.python": sys.executable,
    "spark.executorEnv.PYTHONPATH": str(ROOT / "lib"),
    "spark.ui.enabled": "false",
}


@dataclass
class Cluster:
    """A standalone cluster in a folder. `lose_worker` is what a machine's end looks like from outside."""

    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, role: str, *arguments: str, options: str = "") -> None:
        environment = os.environ | {"SPARK_WORKER_OPTS": options, "SPARK_LOCAL_IP": "127.0.0.1"}
        environment |= {"SPARK_HOME": str(SPARK_HOME), "SPARK_DAEMON_MEMORY": "256m"}
        command = [SPARK_HOME / "bin" / "spark-class", f"org.apache.spark.deploy.{role}", *arguments]
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=self.folder)

    def logged(self, name: str, before: str) -> str:
        """The word after `before` in a process's log."""

        def found() -> str | None:
            text = (self.folder / f"{name}.log").read_text(errors="replace")
            return text.partition(before)[2].split()[0].rstrip(".,") if before in text else None

        return str(wait_until(f"{name} to say {before!r}", found, PATIENCE_S))

    def start_worker(self, name: str, master: str, gpu: int) -> None:
        script = self.folder / f"discover-{name}.sh"
        script.write_text(f'#!/bin/sh\necho \'{{"name": "gpu", "addresses": ["{gpu}"]}}\'\n')
        script.chmod(0o755)
        gpus = f"-Dspark.worker.resource.gpu.amount=1 -Dspark.worker.resource.gpu.discoveryScript={script}"
        size = ("--cores", "1", "--memory", "600m", "--work-dir", str(self.folder / name))
        self.start(name, "worker.Worker", "--host", "127.0.0.1", "--webui-port", "0", *size, master, options=gpus)
        self.logged(name, "Successfully registered with master")

    def lose_worker(self, name: str) -> None:
        """SIGKILL a worker with its executor and all Python processes below it, together."""
        worker = psutil.Process(self.processes[name].pid)
        family = [worker, *worker.children(recursive=True)]
        for process in family:
            process.suspend()  # so that none sees another go
        for process in family:
            process.kill()

    def stop(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.kill()
            process.wait()


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Candidates of a few queries of the bundled lake."""
    folder = tmp_path_factory.mktemp("lake")
    candidates = pq.read_table(DEMO_LAKE / "candidates.parquet")
    queries = candidates["query_id"].unique()
    pq.write_table(candidates.filter(pc.is_in(candidates["query_id"], queries[::66])), folder / "candidates.parquet")
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, str]]:
    running = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        running.start("master", "master.Master", "--host", "127.0.0.1", "--port", "0", "--webui-port", "0")
        master = running.logged("master", "Starting Spark master at ")
        for gpu, name in enumerate(("first", "second")):
            running.start_worker(name, master, gpu)
        yield running, master
    finally:
        running.stop()


def properties() -> dict[str, str]:
    """conf/spark-standalone.conf, made to fit."""
    lines = (ROOT / "conf" / "spark-standalone.conf").read_text().splitlines()
    given = dict(line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))
    del given["spark.archives"]
    return given | SMALLER


@contextmanager
def submitted(master: str, lake: Path, output: Path, conf: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A job on its way, which does not outlive the block."""
    file = output.parent / f"{output.name}.conf"
    file.write_text("".join(f"{key} {value}\n" for key, value in conf.items()))
    settings = [
        *(f"lake.{name}={DEMO_LAKE / name}.parquet" for name in ("documents", "queries")),
        f"lake.candidates={lake / 'candidates.parquet'}",
        "lake.qrels=null",
        f"lake.output={output}",
        "scoring.unit_tokens=700",
        "model.device=cpu",  # the GPUs are made up
    ]
    arguments = ["--config", str(ROOT / "conf" / "demo.yaml"), "--run-id", "r"]
    arguments += [word for setting in settings for word in ("--set", setting)]
    command = [SPARK_HOME / "bin" / "spark-submit", "--master", master, "--properties-file", file]
    with (output.parent / f"{output.name}.log").open("w") as log:
        job = subprocess.Popen(
            [*command, ROOT / "jobs" / "rerank.py", *arguments],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=output.parent,
            env=os.environ | {"PYSPARK_DRIVER_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"},
        )
    with job:
        try:
            yield job
        finally:
            job.kill()


def finish(job: subprocess.Popen[str], output: Path) -> dict[str, Any]:
    printed, _ = job.communicate(timeout=300)
    assert job.returncode == 0, (output.parent / f"{output.name}.log").read_text()
    return dict(json.loads(printed.splitlines()[-1]))


def ranked(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (output / "ranked" / "run_id=r").iterdir()}


def units(output: Path) -> int:
    return len(list((output / "scores").glob("*/*.parquet")))


@pytest.mark.timeout(1500)
def test_lost_worker_leaves_the_bytes_of_one_machine(lake: Path, cluster: tuple[Cluster, str], tmp_path: Path) -> None:
    running, master = cluster
    output = tmp_path / "cluster"
    with submitted(master, lake, output, properties()) as job:
        wait_until("both executors", lambda: len(list(running.folder.glob("*/app-*/*/stderr"))) == 2, PATIENCE_S)
        wait_until("two units to be scored", lambda: job.poll() is not None or units(output) >= 2, PATIENCE_S)
        done = units(output)
        running.lose_worker("second")
        summary = finish(job, output)
    assert 2 <= done < summary["units"], "it was not lost half-way"
    assert summary["published"] is True

    alone = SMALLER | {"spark.driver.memory": "1g"}
    with submitted("local[2]", lake, tmp_path / "alone", alone) as job:
        finish(job, tmp_path / "alone")
    assert ranked(output) == ranked(tmp_path / "alone")
    assert "lost" in (tmp_path / "cluster.log").read_text().lower()


def test_every_worker_hands_out_its_own_gpu(cluster: tuple[Cluster, str]) -> None:
    """The master knows an address a worker, and one executor a worker was started."""
    running, _ = cluster
    for name, address in (("first", 0), ("second", 1)):
        log = (running.folder / f"{name}.log").read_text()
        assert f"[{address}]" in log or f"addresses: {address}" in log
