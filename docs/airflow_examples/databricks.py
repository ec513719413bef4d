"""### The lake's run on Databricks

A Python script task a stage, each on a job cluster of its own: CPUs for all but `score`. Beside lake_tasks in the DAGs
folder; needs apache-airflow-providers-databricks. The cluster's Spark must be 4.3: docs/clusters.md.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from airflow.providers.databricks.operators.databricks import DatabricksSubmitRunOperator
from airflow.sdk import DAG, CronTriggerTimetable, chain

from lake_tasks.run_names import run_name

HOME = "/Workspace/Shared/lakerank"
SPARK = "18.x-gpu-ml-scala2.13"  # a runtime with Spark 4.3
CPU = {"spark_version": SPARK, "node_type_id": "m7i.2xlarge", "num_workers": 8}
GPU = {
    "spark_version": SPARK,
    "node_type_id": "g6e.4xlarge",  # one GPU: one executor a worker, one model an executor
    "num_workers": 4,
    "spark_conf": {"spark.task.resource.gpu.amount": "1", "spark.databricks.photon.enabled": "false"},
}
WHEEL = {"whl": f"{HOME}/dist/lakerank-0.1.0-py3-none-any.whl"}
RUN_ID = "{{ run_name(dag_run.logical_date or dag_run.run_after) }}"


def stage(name: str, cluster: dict[str, Any]) -> DatabricksSubmitRunOperator:
    """A stage of the run on a cluster that is made for it."""
    words = ["--config", f"{HOME}/conf/production.yaml", "--run-id", RUN_ID, "--stage", name]
    summary = ["--summary", f"s3://lake/summaries/{RUN_ID}/{name}"]
    return DatabricksSubmitRunOperator(
        task_id=name,
        run_name=f"lakerank {name}",
        spark_python_task={"python_file": f"{HOME}/jobs/rerank.py", "parameters": [*words, *summary]},
        new_cluster=cluster,
        libraries=[WHEEL],
        retries=3,
    )


with DAG(
    dag_id="rerank_databricks",
    schedule=CronTriggerTimetable("0 2 * * *", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    user_defined_macros={"run_name": run_name},
    doc_md=__doc__,
) as dag:
    chain(stage("plan", CPU), stage("score", GPU), stage("publish", CPU))
