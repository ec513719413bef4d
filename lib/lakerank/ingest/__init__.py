"""Files of many kinds in, lake tables out."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

#: The package that knows published benchmarks: of the repository alone, no wheel has it.
DATASETS = "lakerank_datasets"


def datasets(module: str) -> Any:
    """A module of DATASETS; None where that is not."""
    return import_module(f"{DATASETS}.{module}") if find_spec(DATASETS) else None
