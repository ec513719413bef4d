"""README's commands run.

A fenced block runs unchanged, in order, in one copy of the repository, unless it is tagged `not-run` (it needs a
cluster, a hub or another hour). A later block may use what an earlier one left, and all share one `make demo`: so run
`test_commands_run` as a whole.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.spark, pytest.mark.nightly]
ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its tag and its contents."""

    language: str
    tag: str
    content: str


BLOCKS = [Block(*match) for match in re.findall(r"^```(\w*) ?([\w-]*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)]
COMMANDS = [block for block in BLOCKS if block.language in ("bash", "python") and block.tag != "not-run"]


#: Commands that rank the reader's own texts.
NEED_WEIGHTS = ("lakerank search", "lakerank rerank", "lakerank export")


def _block(text: str) -> Block:
    (result,) = [block for block in BLOCKS if text in block.content]
    return result


@pytest.fixture(scope="module")
def cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with minilm-en; an empty one where its weights are not."""
    try:
        fetched: Path = request.getfixturevalue("minilm_cache")
    except pytest.skip.Exception:
        return tmp_path_factory.mktemp("empty")
    return fetched


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, in a folder with a space in its name, with this environment as its .venv."""
    folder = tmp_path_factory.mktemp("readme") / "a clone"
    for name in ("conf", "jobs", "lib"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "mine").mkdir()  # where the examples keep their files, whichever of them runs first
    (folder / ".venv").symlink_to(sys.prefix)
    command = folder / "commands" / "lakerank"  # the clone's own, whatever is installed
    command.parent.mkdir()
    command.write_text(f"#!/bin/sh\nPYTHONPATH='{folder}/lib' exec '{sys.executable}' -m lakerank \"$@\"\n")
    command.chmod(0o755)
    return folder


def _run(block: Block, clone: Path, cache: Path) -> str:
    command = [sys.executable, "-c"] if block.language == "python" else ["bash", "-euo", "pipefail", "-c"]
    path = os.pathsep.join([str(clone / "commands"), str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "PYSPARK", "SPARK"))}
    done = subprocess.run(
        [*command, block.content],
        cwd=clone,
        # .venv and Java are there already.
        env=env | {"PATH": path, "MAKEFLAGS": "setup=true java=", "LAKERANK_CACHE": str(cache), "COLUMNS": "110"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{block.content}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def output_of(clone: Path, cache: Path) -> Callable[[Block], str]:
    """Standard output of a block, which runs once. What needs minilm-en is skipped where its weights are not."""

    def output(block: Block) -> str:
        if any(command in block.content for command in NEED_WEIGHTS) and not (cache / "minilm-en").exists():
            pytest.skip("no weights of minilm-en: `bin/setup dev` fetches them where there is a network")
        return _run(block, clone, cache)

    return functools.cache(output)


@pytest.mark.parametrize("block", COMMANDS, ids=lambda block: block.content.splitlines()[-1].strip())
def test_commands_run(block: Block, output_of: Callable[[Block], str]) -> None:
    assert output_of(block) or "ingest" in block.content


def test_demo_publishes_a_run_and_a_report(output_of: Callable[[Block], str], clone: Path) -> None:
    assert output_of(_block("make demo\n"))
    output = clone / "out" / "demo"
    run_id = json.loads((output / "current.json").read_text())["run_id"]
    assert pq.read_table(output / "ranked" / f"run_id={run_id}").num_rows > 1000
    assert (output / "runs" / run_id / "report.html").stat().st_size > 10_000


def test_search_prints_what_the_page_shows(output_of: Callable[[Block], str]) -> None:
    assert output_of(_block("lakerank search")).startswith(_block("   1  1.00  router.txt").content)


def test_own_lake_is_ranked_and_published(output_of: Callable[[Block], str], clone: Path) -> None:
    last = json.loads(output_of(_block("--run-id first")).splitlines()[-1])
    assert {key: last[key] for key in ("run_id", "candidates", "rejected", "published")} == {
        "run_id": "first",
        "candidates": 8,
        "rejected": 0,
        "published": True,
    }
    ranked = pq.read_table(clone / "lakerank-out" / "ranked" / "run_id=first")
    assert ranked["query_id"].to_pylist() == ["q1"] * 4 + ["q2"] * 4


def test_examples_of_ranking_rank_rightly(output_of: Callable[[Block], str]) -> None:
    best, second = (line.split() for line in output_of(_block("load_reranker(")).splitlines())
    assert best[:2] == ["2", "bicycle"]
    assert float(best[2]) > 0.9 > 0.1 > float(second[-1])
    answer = json.loads(output_of(_block("lakerank score")).splitlines()[-1])
    (result,) = answer["results"]
    assert answer["model"] == "embedded"
    assert result["index"] == 1
    assert 0.9 < result["relevance_score"] <= 1
