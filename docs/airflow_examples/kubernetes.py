"""### The lake's run in pods

A pod a stage, each on one machine: Spark in local mode, or none for a small lake (spark.local_pairs). For a lake that
needs many machines, submit with conf/spark-kubernetes.conf instead: docs/airflow.md. Beside lake_tasks in the DAGs
folder; needs apache-airflow-providers-cncf-kubernetes, and the image that Dockerfile builds.
"""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import DAG, CronTriggerTimetable, chain, literal
from kubernetes.client import models as k8s

from lake_tasks.run_names import run_name

IMAGE = "registry.example.org/lakerank:0.1.0"
CPU = {"cpu": "8", "memory": "32Gi"}
GPU = {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "1"}
CONFIG = k8s.V1Volume(name="config", config_map=k8s.V1ConfigMapVolumeSource(name="lakerank"))
RUN_ID = "{{ run_name(dag_run.logical_date or dag_run.run_after) }}"


def stage(name: str, resources: dict[str, str]) -> KubernetesPodOperator:
    """A stage of the run in a pod, waited for by the triggerer."""
    # literal: of a word that ends in .yaml the operator would take the file of that name for a template.
    words = ["--config", literal("/etc/lakerank/production.yaml"), "--run-id", RUN_ID, "--stage", name]
    summary = ["--summary", f"s3://lake/summaries/{RUN_ID}/{name}"]
    return KubernetesPodOperator(
        task_id=name,
        name=f"lakerank-{name}",
        namespace="lakerank",
        image=IMAGE,
        cmds=["python3", "/opt/lakerank/jobs/rerank.py"],
        arguments=[*words, *summary],
        container_resources=k8s.V1ResourceRequirements(requests=resources, limits=resources),
        volumes=[CONFIG],
        volume_mounts=[k8s.V1VolumeMount(name="config", mount_path="/etc/lakerank", read_only=True)],
        service_account_name="lakerank",  # its keys of the lake
        on_finish_action="delete_succeeded_pod",
        termination_grace_period=30,
        deferrable=True,
        retries=3,
    )


with DAG(
    dag_id="rerank_kubernetes",
    schedule=CronTriggerTimetable("0 2 * * *", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    user_defined_macros={"run_name": run_name},
    doc_md=__doc__,
) as dag:
    chain(stage("plan", CPU), stage("score", GPU), stage("publish", CPU))
