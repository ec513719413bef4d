"""The Spark session a job runs in, and the settings that would make it wrong or wasteful."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from pyspark import SparkConf, SparkContext, TaskContext
from pyspark.sql import SparkSession

from lakerank.errors import SparkSettingError
from lakerank.runner import visible_gpus

#: What the jobs need; a config's `spark.conf` goes before these, and spark-submit's own properties before both.
DEFAULTS = {
    "spark.master": "local[*]",
    "spark.python.worker.reuse": "true",
    "spark.python.worker.faulthandler.enabled": "true",
    "spark.sql.execution.pyspark.udf.faulthandler.enabled": "true",
    "spark.speculation": "false",
    "spark.sql.execution.arrow.maxBytesPerBatch": str(64 * 2**20),
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.adaptive.coalescePartitions.parallelismFirst": "false",
}


def is_shared() -> bool:
    """Whether the session is somebody else's, never to be stopped: a notebook's, or that of Databricks."""
    return SparkContext._active_spark_context is not None or "DATABRICKS_RUNTIME_VERSION" in os.environ


def start(app_name: str, conf: Mapping[str, str | int | float | bool], partitions: int | None = None) -> SparkSession:
    """Start a session, or join the one that is there, with settings of SQL that stay our own.

    Raises:
        SparkSettingError: a setting would put two models on one GPU or load a model for every task.
    """
    existing = SparkContext._active_spark_context
    if "PYSPARK_GATEWAY_PORT" in os.environ:  # under spark-submit, whose properties the JVM holds
        SparkContext._ensure_initialized()
    spark_conf = SparkConf() if existing is None else existing.getConf()
    settings = {"spark.app.name": app_name, **DEFAULTS}
    settings |= {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in conf.items()}
    if partitions:
        settings["spark.sql.shuffle.partitions"] = str(partitions)
    for key, value in settings.items():
        if not spark_conf.contains(key):
            spark_conf.set(key, value)
    if existing is None and (spark_conf.get("spark.master") or "").startswith("local"):
        _local_workers(spark_conf)
    check(dict(spark_conf.getAll()))
    if existing is None:
        return SparkSession.builder.config(conf=spark_conf).getOrCreate()
    session = SparkSession.builder.getOrCreate().newSession()
    for key in settings:
        if key.startswith("spark.sql.") and session.conf.isModifiable(key):
            session.conf.set(key, spark_conf.get(key) or "")
    return session


def leave(spark: SparkSession, shared: bool) -> None:
    """Stop the session, or leave one that is shared as it was found."""
    if not shared:
        spark.stop()
        return
    for name in ("spark.jobGroup.id", "spark.job.description", "callSite.short"):
        spark.sparkContext.setLocalProperty(name, None)  # type: ignore[arg-type]


def check(conf: Mapping[str, str]) -> None:
    """Refuse settings under which models would share a GPU or be loaded again and again.

    Raises:
        SparkSettingError: names every such setting and what to set it to.
    """
    faults = []
    if conf.get("spark.python.worker.reuse", "true").lower() == "false":
        faults.append("spark.python.worker.reuse=false would load the model again for every task: set it to true")
    if conf.get("spark.speculation", "false").lower() == "true":
        faults.append("spark.speculation=true would score units twice at the same time: set it to false")
    gpus = float(conf.get("spark.task.resource.gpu.amount", "1"))
    if gpus < 1:
        faults.append(
            f"spark.task.resource.gpu.amount={gpus:g} would put {1 / gpus:.0f} models on one GPU: set it to 1"
        )
    if gpus > 1:
        faults.append(
            f"spark.task.resource.gpu.amount={gpus:g}: a model uses one GPU, the others would idle: set it to 1"
        )
    if "spark.task.resource.gpu.amount" in conf and "spark.executor.resource.gpu.amount" not in conf:
        faults.append("spark.task.resource.gpu.amount without spark.executor.resource.gpu.amount: set both to 1")
    if faults:
        raise SparkSettingError("\n".join(faults))


def device_for_task(device: str) -> str:
    """The torch device for the running task: Spark's GPU address where Spark manages GPUs, else as configured.

    `local[N]` has no GPU resource: there the tasks of a stage are one a GPU (see `unmanaged_gpus`), numbered alike.
    """
    context = TaskContext.get()
    if context is None or device not in ("auto", "cuda"):
        return device
    if gpu := context.resources().get("gpu"):
        return f"cuda:{gpu.addresses[0]}"
    gpus = visible_gpus()
    return f"cuda:{context.partitionId() % gpus}" if gpus > 1 else device


def unmanaged_gpus(spark: SparkSession, device: str) -> int:
    """How many GPUs of this machine a local master's tasks must share out among themselves; 0 when there are none.

    Scoring then runs as that many tasks, so that no two models meet on one GPU.
    """
    conf = spark.sparkContext.getConf()
    if not (conf.get("spark.master") or "").startswith("local") or conf.contains("spark.task.resource.gpu.amount"):
        return 0
    if device.startswith("cuda:"):
        return 1
    return visible_gpus() if device in ("auto", "cuda") else 0


def package_path() -> str:
    """A PYTHONPATH by which other processes find this package where this one did."""
    paths = [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]
    return os.pathsep.join(path for path in paths if path)


def _local_workers(conf: SparkConf) -> None:
    """Python workers on this machine use this interpreter and this checkout, installed or not; no name lookups."""
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("SPARK_LOCAL_HOSTNAME", "localhost")
    if not conf.contains("spark.driver.extraJavaOptions"):
        log_settings = (Path(__file__).parent / "log4j2.properties").as_uri()
        conf.set("spark.driver.extraJavaOptions", f"-Dlog4j2.configurationFile={log_settings}")
    if not conf.contains("spark.executorEnv.PYTHONPATH"):
        conf.set("spark.executorEnv.PYTHONPATH", package_path())
