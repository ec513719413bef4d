"""What is committed speaks of the project alone: no machine's paths, no package index's address."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: Words side by side in the address of a package index: this file names none whole, and is read as others are.
INDEXES = (
    ("python", "hosted", r"\."), ("py", "pi", r"\.org/", "simple"), ("registry", r"\.", "npm", "js"),
    (r"\b(?:deb|security)", r"\.", "debian", r"\."), ("--(?:extra-)?", "index", "-url"), ("find", "-links"),
)  # fmt: skip
MACHINE = r"(?<![\w.*/-])/(?:" + "|".join(("work", "root")) + ")/"  # the one that it was written on
ELSEWHERE = re.compile("|".join([MACHINE, *map("".join, INDEXES)]))


@pytest.mark.parametrize(
    "words",
    [
        ("https://files.python", "hosted.org/a.whl"), ("https://py", "pi.org/sim", "ple"), ("registry.npm", "js.org"),
        ("deb.", "debian.org"), ("pip --index", "-url x"), ("--find", "-links x"), ("see /ro", "ot/notes"),
    ],
)  # fmt: skip
def test_such_words_are_found(words: tuple[str, ...]) -> None:
    assert ELSEWHERE.search("".join(words))


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="not a clone")
def test_no_file_names_a_machine_or_a_package_index() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    paths = [ROOT / name.decode() for name in listed.split(b"\0") if name]
    result = {}
    for path in paths:
        if path.is_file():
            text = path.read_bytes().decode("utf-8", "ignore")
            if match := ELSEWHERE.search(text):
                result[str(path.relative_to(ROOT))] = match[0]
    assert result == {}
