"""The examples of other operators, with the providers' own: each parses, and gives jobs/rerank.py its arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from lakerank.cli.rerank import rerank

from .conftest import AIRFLOW, ROOT, Airflow

pytestmark = pytest.mark.nightly

EXAMPLES = sorted((ROOT / "docs" / "airflow_examples").glob("*.py"))

PARSE = """
import importlib.util
from datetime import UTC, datetime
from types import SimpleNamespace as Record
sys.path.append({packages!r})
from airflow.serialization.serialized_objects import DagSerialization

def words(value):
    if isinstance(value, dict):
        value = list(value.values())
    return [word for item in value for word in words(item)] if isinstance(value, (list, tuple)) else [value]

result = {{}}
for path in {files!r}:
    spec = importlib.util.spec_from_file_location("example", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    DagSerialization.to_dict(module.dag)
    result[path] = {{}}
    for task in module.dag.tasks:
        dag_run = Record(logical_date=None, run_after=datetime(2026, 10, 25, 0, 30, tzinfo=UTC))
        task.render_template_fields({{"dag_run": dag_run}})
        rendered = [words(getattr(task, field)) for field in task.template_fields]
        result[path][task.task_id] = {{
            "downstream": sorted(task.downstream_task_ids),
            "words": [word for field in rendered for word in field if isinstance(word, str)],
        }}
"""


@pytest.fixture(scope="module")
def examples(small_airflow: Airflow) -> dict[str, Any]:
    packages = AIRFLOW.parent / "examples"
    if not packages.exists():
        pytest.skip("no providers in .venv-airflow/examples: `bin/setup airflow` installs them")
    return dict(small_airflow.python(PARSE.format(packages=str(packages), files=[str(file) for file in EXAMPLES])))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_example_runs_the_three_stages(examples: dict[str, Any], file: Path) -> None:
    tasks = examples[str(file)]
    assert {name: task["downstream"] for name, task in tasks.items()} == {
        "plan": ["score"],
        "score": ["publish"],
        "publish": [],
    }
    for name, task in tasks.items():
        words = task["words"]
        arguments = words[words.index("--config") :][:8]
        given = rerank.make_parser(click.Context(rerank)).parse_args(arguments)
        assert given[0]["steps"] == name
        assert given[0]["run_id"] == "run-2026-10-25T003000Z"
        assert given[0]["summary"] == f"s3://lake/summaries/run-2026-10-25T003000Z/{name}"
