"""`import lakerank` is instant, and each heavy library is loaded only by the packages that own it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "peft", "pyspark", "pandas", "pyarrow", "numpy", "pydantic", "airflow")


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def _heavy_after(statement: str) -> set[str]:
    code = f"import json, sys; {statement}; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    return set(json.loads(_run(code)))


def test_import_takes_under_a_fifth_of_a_second() -> None:
    code = "import time; start = time.perf_counter(); import lakerank; print(time.perf_counter() - start)"
    seconds = min(float(_run(code)) for _ in range(5))
    assert seconds < 0.2


def test_import_loads_nothing_heavy() -> None:
    assert _heavy_after("import lakerank; lakerank.Query('q', 'text')") == set()


@pytest.mark.parametrize("module", ["lakerank.config", "lakerank.model", "lakerank.model.checkpoint", "lakerank.cli"])
def test_edges_load_neither_torch_nor_spark(module: str) -> None:
    assert _heavy_after(f"import {module}").isdisjoint({"torch", "transformers", "peft", "pyspark"})


def test_unknown_name_is_an_attribute_error() -> None:
    import lakerank

    with pytest.raises(AttributeError, match="no attribute 'load_rerankers'"):
        _ = lakerank.load_rerankers


#: What is not on a machine that scores alone: the model layer imports none of it.
ABSENT = ("pyspark", "pandas", "pyarrow", "s3fs", "jinja2", "pytrec_eval", "pydantic", "tenacity")


def test_scoring_needs_torch_and_transformers_alone() -> None:
    """A GPU image with torch and transformers scores by the Python API."""
    absent = f"import sys; sys.modules.update(dict.fromkeys({ABSENT!r}))"
    pair = "(lakerank.Query('q', 'a red apple'), lakerank.Document('d', 'apple'))"
    score = f"lakerank.load_reranker('embedded', device='cpu', dtype='float32').score([{pair}])"
    assert _run(f"{absent}; import lakerank; print({score}.shape)").strip() == "(1,)"
