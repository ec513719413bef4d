"""### The lake's run on Amazon EMR

A step a stage, on two clusters that are up: one of CPUs, and one of GPUs for `score`. Beside lake_tasks in the DAGs
folder; needs apache-airflow-providers-amazon. The clusters' settings are in docs/clusters.md.
"""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.providers.amazon.aws.operators.emr import EmrAddStepsOperator
from airflow.sdk import DAG, CronTriggerTimetable, chain

from lake_tasks.run_names import run_name

HOME = "s3://lake/lakerank"
CPU, GPU = "lakerank-cpu", "lakerank-gpu"  # names of clusters
RUN_ID = "{{ run_name(dag_run.logical_date or dag_run.run_after) }}"


def stage(name: str, cluster: str, properties: str) -> EmrAddStepsOperator:
    """A stage of the run as a step of a cluster, waited for by the triggerer."""
    words = ["--config", f"{HOME}/conf/production.yaml", "--run-id", RUN_ID, "--stage", name]
    summary = ["--summary", f"s3://lake/summaries/{RUN_ID}/{name}"]
    submit = ["spark-submit", "--deploy-mode", "cluster", "--properties-file", properties]
    step = {
        "Name": f"lakerank {name} {RUN_ID}",
        "ActionOnFailure": "CONTINUE",
        "HadoopJarStep": {
            "Jar": "command-runner.jar",
            "Args": [*submit, f"{HOME}/jobs/rerank.py", *words, *summary],
        },
    }
    return EmrAddStepsOperator(
        task_id=name,
        job_flow_name=cluster,
        cluster_states=["WAITING", "RUNNING"],
        steps=[step],
        wait_for_completion=True,
        waiter_delay=60,
        waiter_max_attempts=24 * 60,
        deferrable=True,
        retries=3,
    )


with DAG(
    dag_id="rerank_emr",
    schedule=CronTriggerTimetable("0 2 * * *", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    user_defined_macros={"run_name": run_name},
    doc_md=__doc__,
) as dag:
    cpu, gpu = "/etc/lakerank/spark-cpu.conf", "/etc/lakerank/spark-yarn.conf"  # on the clusters' main nodes
    chain(stage("plan", CPU, cpu), stage("score", GPU, gpu), stage("publish", CPU, cpu))
