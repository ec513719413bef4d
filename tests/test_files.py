"""What is committed speaks of the project alone: no machine's paths, no package index's address."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ELSEWHERE = re.compile(
    r"(?<![\w.*/-])/(?:work|root)/"  # the machine it was written on
    r"|pythonhosted\.|pypi\.org/simple|registry\.npmjs|(?:deb|security)\.debian\.|--(?:extra-)?index-url|find-links"
)


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="not a clone")
def test_no_file_names_a_machine_or_a_package_index() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    paths = [ROOT / name.decode() for name in listed.split(b"\0") if name]
    found = {}
    for path in paths:
        if path.is_file() and path != Path(__file__):
            text = path.read_bytes().decode("utf-8", "ignore")
            if match := ELSEWHERE.search(text):
                found[str(path.relative_to(ROOT))] = match[0]
    assert found == {}
