"""Training through Spark's TorchDistributor: who asks whom for a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from pyspark.sql import SparkSession

from lakerank_training.spark import train_on


@pytest.mark.spark
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the distributor leaves a pipe open
def test_processes_of_one_machine_ask_spark_for_no_gpu(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local master has none to give, and would refuse; each process takes the one of its number."""
    monkeypatch.setenv("PYTHONPATH", "")  # and restores the environment of the distributor's processes
    assert train_on(spark, lambda config: config.device, SimpleNamespace(device="cuda"), 1) == "cuda"
