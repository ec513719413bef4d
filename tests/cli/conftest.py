"""Fixtures of the command lines' tests."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Spark session that another test has started in this process is not seen: a job would join it."""
    if pyspark := sys.modules.get("pyspark"):
        monkeypatch.setattr(pyspark.SparkContext, "_active_spark_context", None)
