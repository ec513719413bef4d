"""docs/notebooks/spark.ipynb runs as Jupyter would run it, and is kept without outputs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import lakerank

pytestmark = [pytest.mark.spark, pytest.mark.nightly, pytest.mark.filterwarnings("default::DeprecationWarning")]

FILE = Path(__file__).parents[2] / "docs" / "notebooks" / "spark.ipynb"


def _results(notebook: Any) -> list[str]:
    """What the cells' last expressions were."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [output["data"]["text/plain"] for output in outputs if output["output_type"] == "execute_result"]


def test_the_notebook_runs_and_ranks_rightly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = str(Path(lakerank.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([package, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("SPARK_LOCAL_HOSTNAME", "localhost")
    notebook = nbformat.read(FILE, as_version=4)
    NotebookClient(
        notebook, timeout=540, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert _results(notebook) == ["{'q1': 'bicycle', 'q2': 'red apple'}"]


def test_the_notebook_is_kept_without_outputs() -> None:
    cells = [cell for cell in nbformat.read(FILE, as_version=4).cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
