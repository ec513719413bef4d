"""The wheel: what it holds, and that the demo runs from it where there is no clone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (file,) = folder.glob("lakerank-*.whl")
    return file


@pytest.fixture(scope="module")
def lakerank(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The console command in an environment of its own: the wheel, and this environment's packages without lakerank."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-index", "--no-deps", wheel]
    subprocess.run(install, check=True, capture_output=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    # .pth files in the folders that it names are not read: an editable install there stays out.
    (packages / "ready.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    return environment / "bin" / "lakerank"


def test_the_wheel_holds_the_package_the_bundled_lake_checkpoint_and_configs_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    packages = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert packages == {"lakerank", "lakerank_evaluation", "lakerank_training"}
    folders = ["lib/lakerank", "lib/lakerank_evaluation", "lib/lakerank_training", "conf"]
    tracked = ["git", "ls-files", "-z", *folders]
    listed = subprocess.run(tracked, cwd=ROOT, capture_output=True, check=False)
    if listed.returncode == 0:
        files = [name for name in listed.stdout.decode().split("\0") if (ROOT / name).is_file()]
        assert {name.replace("lib/", "", 1) for name in files if name.startswith("lib/")} <= names
        assert {f"lakerank/{name}" for name in files if name.startswith("conf/")} <= names
    assert {
        "lakerank/py.typed", "lakerank/conf/demo.yaml", "lakerank/model/embedded/model.safetensors",
        "lakerank/spark/runtime/log4j2.properties",
    } <= names  # fmt: skip
    assert {f"lakerank/ingest/demo_lake/{table}.parquet" for table in ("documents", "queries", "candidates")} <= names


@pytest.mark.nightly
def test_the_readers_of_benchmarks_are_in_a_clone_alone(lakerank: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    words = ["ingest", tmp_path, "--layout", "beir", "--split", "test", "--output", tmp_path / "out"]
    done = subprocess.run([lakerank, *words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "clone" in json.loads(done.stdout.splitlines()[-1])["message"]


@pytest.mark.nightly
@pytest.mark.parametrize("command", ["train", "distill", "fetch"])
def test_the_wheel_makes_checkpoints(lakerank: Path, tmp_path: Path, command: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    code = "import lakerank_training.distill, lakerank_training.run as run; print(run.__file__)"
    words = [lakerank.with_name("python"), "-c", code]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert str(lakerank.parent.parent) in done.stdout
    subprocess.run([lakerank, command, "--help"], cwd=tmp_path, env=environment, capture_output=True, check=True)


@pytest.mark.spark
@pytest.mark.nightly
def test_the_demo_is_published_outside_a_clone(lakerank: Path, tmp_path: Path) -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYSPARK", "SPARK"))
    }
    done = subprocess.run(
        [lakerank, "rerank", "--config", "demo", "--run-id", "r", "--set", f"lake.output={tmp_path / 'out'}"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["published"] is True
    assert json.loads((tmp_path / "out" / "current.json").read_text())["run_id"] == "r"
    assert pq.read_table(tmp_path / "out" / "ranked" / "run_id=r").num_rows > 10_000
    assert "embedded" in (tmp_path / "out" / "runs" / "r" / "config.yaml").read_text()
    evaluate = [lakerank, "evaluate", "--config", "demo", "--set", f"lake.output={tmp_path / 'out'}"]
    done = subprocess.run(evaluate, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr  # without the package that knows published benchmarks
    assert Path(json.loads(done.stdout.splitlines()[-1])["report"]).is_file()
