"""### Delete files that no kept run needs

Keeps the newest `keep_runs` runs (and those of the last `keep_days` days, where given), the published one always, and
deletes what only older runs need. Without `apply` it lists what it would delete. See `jobs/clean.py --help`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, Param

from lake_tasks.lake_job import LakeJob
from lake_tasks.lakes import read_lakes
from lake_tasks.settings import Settings


def rerank_clean(lake: Settings) -> DAG:
    """The DAG of a lake."""
    params = {
        "config": Param(lake.config, type="string", title="Config", description="Config file, below home or absolute."),
        "set": Param(lake.set, type="array", title="Settings", description="section.key=value, one a line."),
        "keep_runs": Param(lake.keep_runs, type=["null", "integer"], minimum=1, title="Runs to keep"),
        "keep_days": Param(None, type=["null", "number"], minimum=0, title="Days to keep"),
        "apply": Param(True, type="boolean", title="Delete", description="Off: only list what would be deleted."),
    }
    with DAG(
        dag_id=lake.name("rerank_clean"),
        schedule=lake.cron(lake.clean_schedule),
        start_date=datetime(2020, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        dagrun_timeout=timedelta(hours=lake.run_timeout_hours),
        default_args=lake.task_defaults(),
        params=params,
        doc_md=__doc__,
        tags=lake.tags,
    ) as dag:
        LakeJob(
            names_run=False,
            options={"keep_runs": "--keep-runs", "keep_days": "--keep-days", "apply": "--apply"},
            **lake.job("clean"),
        )
    return dag


dags = [rerank_clean(lake) for lake in read_lakes()]
