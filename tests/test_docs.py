"""README, CONTRIBUTING and the pages in docs/ say what the code has: columns, codes, settings, files, libraries."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import defaultdict
from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from lakerank import RejectReason, schemas
from lakerank.audit import Bounds
from lakerank.cli import job as cli
from lakerank.cli.signals import SIGNALS
from lakerank.config import load_config, resolve_config
from lakerank_training.config import TrainingLakeConfig, load_train_config

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
INDEX = ROOT / "docs" / "README.md"
PAGES = {path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS)}
README = PAGES[ROOT / "README.md"]
POINTER = r"(README(?!\w)|docs/[\w-]+\.md)(?:#([\w-]+)|, '([^']+)')?"
OVERRIDE = r"--set (\"[^\"]+\"|'[^']+'|[^\s\"]+)"
DEMO = ROOT / "conf" / "demo.yaml"


def _blocks(text: str, language: str) -> list[str]:
    """The contents of the fenced blocks of a language."""
    return re.findall(rf"^```{language}(?: [\w-]+)?\n((?s:.*?))^```$", text, re.MULTILINE)


def _rows(table_head: str) -> list[list[str]]:
    """Cells of the one table whose head line starts so, without the head."""
    (page,) = [text for text in PAGES.values() if f"\n{table_head}" in text]
    rows = []
    for line in page[page.index(f"\n{table_head}") + 1 :].splitlines()[2:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def _names(cell: str) -> list[str]:
    """Names in backquotes."""
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_that_commands_and_configs_set_exist(page: Path) -> None:
    for block in _blocks(PAGES[page], "bash"):
        for command in block.replace("\\\n", " ").splitlines():
            overrides = [value.strip("\"'") for value in re.findall(OVERRIDE, command.partition(" #")[0])]
            if "jobs/train.py" in command:
                load_train_config(ROOT / "conf" / "train-clicks.yaml", overrides)
            else:
                load_config(DEMO, overrides)
    values = yaml.safe_load(DEMO.read_text(encoding="utf-8"))
    for block in _blocks(PAGES[page], "yaml"):
        resolve_config(values | yaml.safe_load(block))


def _settings() -> dict[str, set[str]]:
    """Settings by section: of reranking, with each form that `model` can have, and of the lake in training."""
    settings = defaultdict(set)
    for name in ("demo", "routed", "cascade", "ensemble"):
        for section, values in load_config(ROOT / "conf" / f"{name}.yaml").model_dump().items():
            settings[section] |= (
                set(map(str, range(len(values)))) if isinstance(values, (list, tuple)) else values.keys()
            )
    settings["lake"] |= TrainingLakeConfig.model_fields.keys()
    return settings


def test_settings_that_the_text_names_exist() -> None:
    settings = _settings()
    named = []
    for page, text in PAGES.items():
        sections = settings if text is README else settings.keys() - {"spark"}  # spark.archives is Spark's own
        result = re.findall(
            rf"`({'|'.join(sections)})\.(?!(?:json|py)`)(\w+)", text
        )  # audit.json and audit.py are files
        named += [(page.name, section, key) for section, key in result]
    assert len({page for page, *_ in named}) > 5
    assert [name for name in named if name[2] not in settings[name[1]]] == []


def _texts() -> list[str]:
    """Every text in the code that users may be shown, docstrings included, and the comments of configs."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "conf").glob("*.yaml")]
    for path in [*(ROOT / "lib" / "lakerank").rglob("*.py"), *(ROOT / "airflow_dags").rglob("*.py")]:
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        # Parts of an f-string stand in a JoinedStr: together they are one text.
        texts += [
            "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
            if isinstance(node, ast.JoinedStr)
            else node.value
            for node in nodes
            if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
        ]
    return [" ".join(text.split()) for text in texts]


def test_every_page_and_heading_that_the_code_points_to_is_there() -> None:
    texts = _texts()
    pointers = {pointer for text in texts for pointer in re.findall(POINTER, text)}
    assert ("docs/tables.md", "", "Columns") in pointers
    assert len(pointers) > 5
    for page, anchor, heading in pointers:
        text = PAGES[ROOT / ("README.md" if page == "README" else page)]
        headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        assert not heading or heading in headings, f"{page} has no heading {heading!r}"
        anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings]
        assert not anchor or anchor in anchors, f"{page} has no #{anchor}"
    for name in {name for text in texts for name in re.findall(r"\b(?:conf|jobs)/[\w-]+\.\w+", text)}:
        assert (ROOT / name).exists(), name


def test_every_reject_code_is_listed() -> None:
    assert [_names(row[0])[0] for row in _rows("| `reason` | means |")] == [reason.value for reason in RejectReason]


def test_every_bound_of_the_audit_is_listed() -> None:
    rows, bounds = _rows("| check |"), {field.name for field in fields(Bounds)}
    assert bounds <= {name for row in rows for cell in row for name in _names(cell)}
    assert {name for row in rows for name in _names(row[1])} <= bounds


def test_every_exit_status_is_listed() -> None:
    listed = [int(status) for row in _rows("| exit status |") for status in row[0].split(", ")]
    interrupted = [128 + number for number in SIGNALS]
    assert listed == [cli.DONE, cli.FAILED, cli.WRONG_ARGUMENTS, cli.NOT_PUBLISHED, *interrupted]


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
    (tree,) = [block for block in _blocks(README, "") if "lib/lakerank/\n" in block]
    package = ROOT / "lib" / "lakerank"
    packages = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")} | {
        path.name for path in package.glob("*.py") if path.name != "__init__.py"
    }
    inside = tree[tree.index("lib/lakerank/") : tree.index("tests/")]
    assert packages == set(re.findall(r"(?<!\S)(\w+(?:/|\.py))(?!\S)", inside)) - {"embedded/"}
    for name in re.findall(r"^(\S+/)", tree, re.MULTILINE):
        assert (ROOT / name).is_dir()


def test_jobs_are_listed_and_exist() -> None:
    for name in set(re.findall(r"jobs/\w+\.py", "".join(PAGES.values()))):
        assert (ROOT / name).is_file(), name
    listed = re.search(r"^jobs/ .*: (.*)$", README, re.MULTILINE)
    assert listed
    assert sorted(listed[1].split(" · ")) == sorted(path.stem for path in (ROOT / "jobs").glob("*.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_the_text_names_exist(page: Path) -> None:
    names = re.findall(r"`((?:lib|tests|conf|jobs|airflow_dags|docs|bin)/[\w./-]+)`", PAGES[page])
    if page.name == "CONTRIBUTING.md":  # which names packages and modules as README's tree does
        inside = r"`((?:model|spark|rerank|lake|plan|ingest|export|cli)/[\w./-]*)`"
        names += [f"lib/lakerank/{name}" for name in re.findall(inside, PAGES[page])]
    assert [name for name in names if not (ROOT / name).exists()] == []


def _links(page: Path) -> set[Path]:
    """The files that a page links to."""
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)(?:#[^)]*)?\)", PAGES[page])
    return {(page.parent / link).resolve() for link in links}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_local_links_lead_somewhere(page: Path) -> None:
    assert {link for link in _links(page) if not link.exists()} == set()


def test_every_page_is_in_the_index() -> None:
    assert {page.resolve() for page in DOCS if page != INDEX} <= _links(INDEX)


def _dependencies() -> set[str]:
    """Normalised names of everything that pyproject.toml asks for, lakerank's own extras left out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    expected = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.split(r"[\[<>=]", line)[0].lower().replace("-", "_") for lines in expected for line in lines}
    return names - {"lakerank"}


def test_every_library_has_its_reason() -> None:
    names = _dependencies()
    explained = {name.lower().replace("-", "_") for row in _rows("| library |") for name in row[0].split(", ")}
    typings = {name for name in names if name.startswith("types_") or name.endswith("_stubs")}
    assert names - typings == explained


def test_every_dependency_is_pinned_once() -> None:
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    pinned = [pin.partition("==")[0].lower().replace("-", "_") for pin in pins]
    assert len(pinned) == len(set(pinned))
    assert _dependencies() <= set(pinned)
