"""Layers: the contracts in pyproject.toml name every package, and no modules import each other in a circle."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]

#: The packages that may import the libraries of each "only … imports …" contract.
LIBRARIES = ("torch", "sentence_transformers", "transformers", "peft")
OWNERS = {("pyspark",): {"spark"}, LIBRARIES: {"model"}}


def _layers() -> set[str]:
    package = ROOT / "lib" / "lakerank"
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    return folders | {path.stem for path in package.glob("*.py") if path.stem != "__init__"}


@pytest.mark.parametrize("libraries", OWNERS, ids=" ".join)
def test_heavy_libraries_are_forbidden_to_every_layer_but_their_owners(libraries: tuple[str, ...]) -> None:
    (contract,) = [c for c in CONTRACTS if c["type"] == "forbidden" and tuple(c["forbidden_modules"]) == libraries]
    forbidden_to = {module.removeprefix("lakerank.") for module in contract["source_modules"]}
    assert forbidden_to == _layers() - OWNERS[libraries]


def _imports(file: Path, modules: set[str]) -> set[str]:
    """Modules that a file imports anywhere: at its top, inside a function, or for annotations alone."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= members if members <= modules else members | {str(node.module)}
    return names & modules


def _circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Modules that reach themselves, each with all that it shares a circle with."""
    reached = {}
    for module in graph:
        waiting, seen = [module], set[str]()
        while waiting:
            following = graph[waiting.pop()] - seen
            seen |= following
            waiting += following
        reached[module] = seen
    in_circles = [module for module in graph if module in reached[module]]
    circles = {frozenset(other for other in reached[module] if module in reached[other]) for module in in_circles}
    return sorted(map(sorted, circles))


def test_no_modules_import_each_other_in_a_circle_lazily_or_not() -> None:
    lib = ROOT / "lib"
    files = {
        ".".join(path.relative_to(lib).with_suffix("").parts).removesuffix(".__init__"): path
        for path in lib.rglob("*.py")
    }
    graph = {name: _imports(path, set(files)) for name, path in files.items()}
    assert len(graph) > 100
    assert _circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"}}) == [["b", "c"], ["d"]]
    assert _circles(graph) == []
