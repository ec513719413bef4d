"""The command's options: all formats are offered, and what does not go together is refused before anything starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pyspark import cloudpickle

from lakerank.export.format import Target
from lakerank.export.job import FORMATS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_crosses_to_a_worker_and_writes_the_same_there(name, lists):
    here = FORMATS[name](Target("a:b"))
    there = cloudpickle.loads(cloudpickle.dumps(here))
    written = [form.finish([form.encode(ranking) for ranking in lists]) for form in (here, there)]
    assert written[0] == written[1]
    if here.remove is not None:
        assert there.remove("q") == here.remove("q")


def test_every_format_is_documented():
    page = (ROOT / "docs" / "export.md").read_text()
    assert [name for name in FORMATS if f"`{name}`" not in page] == []


def test_options_that_do_not_go_together_are_all_named():
    command = [sys.executable, str(ROOT / "jobs" / "export.py"), "--config", str(ROOT / "conf" / "demo.yaml")]
    wrong = ["--run-id", "a/b", "--format", "vespa-lists", "--to", "nowhere", "--name", "product", "--pairs", "3"]
    done = subprocess.run([*command, *wrong], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    message = json.loads(done.stdout.splitlines()[-1])["message"]
    for part in ("run id 'a/b'", "--pairs: only golden-pairs", "--name product: expected namespace:document type"):
        assert part in message
