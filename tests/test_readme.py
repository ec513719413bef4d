"""The README is true: its commands run, and its tables list what the code has.

A fenced block runs as it stands, in order, in one copy of the repository, unless it is tagged `not-run` (it needs a
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
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from lakerank import RejectReason, schemas
from lakerank.cli import job as cli
from lakerank.config import load_config, resolve_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its tag and what stands in it."""

    language: str
    tag: str
    content: str


BLOCKS = [Block(*match) for match in re.findall(r"^```(\w*) ?([\w-]*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)]
COMMANDS = [block for block in BLOCKS if block.language in ("bash", "python") and block.tag != "not-run"]


def _block(text: str) -> Block:
    (found,) = [block for block in BLOCKS if text in block.content]
    return found


def _rows(table_head: str, text: str = README) -> list[list[str]]:
    """Cells of the table whose head line starts so, without the head."""
    lines = text[text.index(table_head) :].splitlines()[2:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def _names(cell: str) -> list[str]:
    """What stands in backquotes."""
    return re.findall(r"`([^`]+)`", cell)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, in a folder with a space in its name, with this environment as its .venv."""
    folder = tmp_path_factory.mktemp("readme") / "a clone"
    for name in ("conf", "jobs", "lib"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Makefile", folder)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def _run(block: Block, clone: Path) -> str:
    command = [sys.executable, "-c"] if block.language == "python" else ["bash", "-euo", "pipefail", "-c"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "PYSPARK", "SPARK"))}
    done = subprocess.run(
        [*command, block.content],
        cwd=clone,
        env=env | {"PATH": path, "MAKEFLAGS": "setup=true java="},  # .venv and Java are there already
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{block.content}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def output_of(clone: Path) -> Callable[[Block], str]:
    """Standard output of a block, which runs once."""
    return functools.cache(lambda block: _run(block, clone))


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.parametrize("block", COMMANDS, ids=lambda block: block.content.splitlines()[-1].strip())
def test_commands_run(block: Block, output_of: Callable[[Block], str]) -> None:
    assert output_of(block) or "ingest" in block.content


@pytest.mark.spark
@pytest.mark.slow
def test_demo_publishes_a_run_and_a_report(output_of: Callable[[Block], str], clone: Path) -> None:
    assert output_of(_block("make demo\n"))
    output = clone / "out" / "demo"
    run_id = json.loads((output / "current.json").read_text())["run_id"]
    assert pq.read_table(output / "ranked" / f"run_id={run_id}").num_rows > 1000
    assert (output / "runs" / run_id / "report.html").stat().st_size > 10_000


@pytest.mark.spark
@pytest.mark.slow
def test_own_lake_is_ranked_and_its_bad_candidate_rejected(output_of: Callable[[Block], str], clone: Path) -> None:
    last = json.loads(output_of(_block("--run-id first")).splitlines()[-1])
    assert {key: last[key] for key in ("run_id", "candidates", "rejected", "published")} == {
        "run_id": "first",
        "candidates": 4,
        "rejected": 1,
        "published": True,
    }
    rejected = pq.read_table(clone / "mine" / "out" / "rejected" / "run_id=first").to_pylist()
    assert [(row["doc_id"], row["reason"]) for row in rejected] == [("manual-3", "missing_document")]
    ranked = pq.read_table(clone / "mine" / "out" / "ranked" / "run_id=first")
    assert ranked["query_id"].to_pylist() == ["q1", "q1", "q2"]


@pytest.mark.slow
def test_python_example_prints_a_logit_a_pair(output_of: Callable[[Block], str]) -> None:
    printed = output_of(_block("load_reranker(")).strip()
    assert len(printed.strip("[]").split()) == 2


@pytest.mark.slow
def test_request_is_answered_in_json(output_of: Callable[[Block], str]) -> None:
    answer = json.loads(output_of(_block("jobs/score.py")).splitlines()[-1])
    (result,) = answer["results"]
    assert result["index"] in (0, 1)
    assert 0 <= result["relevance_score"] <= 1


def test_settings_that_commands_and_configs_name_exist() -> None:
    shell = " ".join(block.content for block in BLOCKS if block.language == "bash")
    overrides = [word.partition("--set ")[2] for word in re.findall(r"--set \S+", shell)]
    assert overrides
    load_config(ROOT / "conf" / "demo.yaml", overrides)
    values = yaml.safe_load((ROOT / "conf" / "demo.yaml").read_text(encoding="utf-8"))
    for block in BLOCKS:
        if block.language == "yaml":
            resolve_config(values | yaml.safe_load(block.content))


def test_settings_that_the_text_names_exist() -> None:
    config = load_config(ROOT / "conf" / "demo.yaml").model_dump()
    named = re.findall(rf"`({'|'.join(config)})\.(?!json`)(\w+)", README)  # audit.json is a file
    assert named
    assert [f"{section}.{key}" for section, key in named if key not in config[section]] == []


def test_every_reject_code_is_listed() -> None:
    assert [_names(row[0])[0] for row in _rows("| `reason` |")] == [reason.value for reason in RejectReason]


def test_every_exit_status_is_listed() -> None:
    listed = [int(row[0]) for row in _rows("| exit status |")]
    assert listed == [cli.DONE, cli.FAILED, cli.WRONG_ARGUMENTS, cli.NOT_PUBLISHED]


@pytest.mark.parametrize(
    ("head", "table", "schema"),
    [
        ("| input |", "documents", schemas.DOCUMENTS),
        ("| input |", "queries", schemas.QUERIES),
        ("| input |", "candidates", schemas.CANDIDATES),
        ("| input |", "qrels", schemas.QRELS),
        ("| output |", "ranked/run_id=R/", schemas.RANKED),
        ("| output |", "rejected/run_id=R/", schemas.REJECTED),
    ],
)
def test_tables_list_every_column(head: str, table: str, schema: pa.Schema) -> None:
    (columns,) = [row[1] for row in _rows(head) if row[0] == f"`{table}`"]
    assert _names(columns)[: len(schema)] == schema.names
    if head == "| input |":
        assert {name for name in _names(columns) if f"`{name}`?" in columns} == schemas.OPTIONAL & set(schema.names)


def test_tree_names_every_package_and_only_what_is_there() -> None:
    tree = _block("lib/lakerank/\n").content
    package = ROOT / "lib" / "lakerank"
    packages = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")} | {
        path.name for path in package.glob("*.py") if path.name != "__init__.py"
    }
    inside = tree[tree.index("lib/lakerank/") : tree.index("tests/")]
    assert packages == set(re.findall(r"(?<!\S)(\w+(?:/|\.py))(?!\S)", inside)) - {"embedded/"}
    for name in re.findall(r"^(\S+/)", tree, re.MULTILINE):
        assert (ROOT / name).is_dir()


def test_jobs_are_listed_and_exist() -> None:
    for name in set(re.findall(r"jobs/\w+\.py", README + CONTRIBUTING)):
        assert (ROOT / name).is_file(), name
    listed = re.search(r"^jobs/ .*: (.*)$", README, re.MULTILINE)
    assert listed
    assert sorted(listed[1].split(" · ")) == sorted(path.stem for path in (ROOT / "jobs").glob("*.py"))


def test_local_links_lead_somewhere() -> None:
    for text in (README, CONTRIBUTING):
        for link in re.findall(r"\]\((?!https?://|#)([^)#]+)\)", text):
            assert (ROOT / link).exists(), link


def _dependencies() -> set[str]:
    """Normalised names of everything that pyproject.toml asks for, lakerank's own extras left out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.split(r"[\[<>=]", line)[0].lower().replace("-", "_") for lines in wanted for line in lines}
    return names - {"lakerank"}


def test_every_library_has_its_reason() -> None:
    names = _dependencies()
    explained = {
        name.lower().replace("-", "_") for row in _rows("| library |", CONTRIBUTING) for name in row[0].split(", ")
    }
    typings = {name for name in names if name.startswith("types_") or name.endswith("_stubs")}
    assert names - typings == explained


def test_every_dependency_is_pinned_once() -> None:
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    pinned = [pin.partition("==")[0].lower().replace("-", "_") for pin in pins]
    assert len(pinned) == len(set(pinned))
    assert _dependencies() <= set(pinned)


@pytest.mark.spark
@pytest.mark.parametrize("path", sorted((ROOT / "conf").glob("spark-*.conf")), ids=lambda path: path.name)
def test_gpu_properties_pass_the_jobs_own_check(path: Path) -> None:
    from lakerank.spark.runtime.session import check

    lines = path.read_text().splitlines()
    properties = dict(line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))
    assert properties["spark.executor.resource.gpu.amount"] == "1"
    check(properties)


def test_gpu_discovery_says_what_nvidia_smi_lists(tmp_path: Path) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\nprintf '0\\n3\\n'\n")
    fake.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    printed = subprocess.run([ROOT / "conf" / "discover-gpus.sh"], env=env, check=True, capture_output=True).stdout
    assert json.loads(printed) == {"name": "gpu", "addresses": ["0", "3"]}
