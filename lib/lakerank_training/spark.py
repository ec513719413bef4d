"""Training on a Spark cluster: its TorchDistributor starts the processes, one barrier task each."""

from __future__ import annotations

import os
from typing import Any

from pyspark.ml.torch.distributor import TorchDistributor
from pyspark.sql import SparkSession

from lakerank.spark.runtime.session import package_path


def train_on(spark: SparkSession, run: Any, config: Any, processes: int) -> Any:
    """Call `run(config)` in so many processes that train together; returns what the first one returns.

    On a local master they are processes of this machine, and each takes the GPU of its number. On a cluster each is a
    barrier task, with the GPU that Spark gives it when the config's device is one; the config's output must be a folder
    that all of them see.
    """
    local = str(spark.sparkContext.master).startswith("local")
    os.environ["PYTHONPATH"] = package_path()  # the processes are started anew
    # On one machine nobody tells Spark of GPUs (spark.driver.resource.gpu): it would refuse to hand any out.
    gpus = not local and str(config.device).startswith("cuda")
    return TorchDistributor(num_processes=processes, local_mode=local, use_gpu=gpus).run(run, config)
