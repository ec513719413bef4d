"""### Rerank the lake and publish the lists

`plan → score → audit_and_publish → evaluate → export`, each a job of its own under `spark-submit`. Only `score` holds
GPUs: it has its own connection (`lakerank_gpu`), pool (`lakerank_gpu`) and Spark properties.

**Which run.** The run is named after the start of the data interval: `2026-01-31T020000`, or `2026-01-31` for midnight.
A retry, a cleared task or a backfill of that moment resumes that run: finished work units are never scored again, and a
published run is left as it is.

**When it starts.** By the schedule, or when the Asset `lakerank_candidates` is updated. One run at a time. When a run
is published, the Asset `lakerank_published` is updated, with the run's id and counts in the event.

**When it is red.** *At `audit_and_publish`*: an audit failed, nothing was published and the old run is still current.
The message names the audit; the task's log has the figures. Put the lake or the bounds right and clear the task, or
trigger the same date again with `publish_anyway` and a reason. *Elsewhere*: after its retries. Read the message, put
the cause right, clear the failed task: work that is finished is kept.

**What it takes.** Defaults come from the Variable `lakerank`; each run's Params can differ. See docs/airflow.md.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, Param, get_current_context, task

from lake_tasks.alerts import alert
from lake_tasks.exports import export_arguments
from lake_tasks.lake_job import LakeJob
from lake_tasks.run_names import moment_of, run_name
from lake_tasks.settings import EXPORTED, PUBLISHED, Settings

settings = Settings.read()

PARAMS = {
    "config": Param(settings.config, type="string", title="Config", description="Config file, below home or absolute."),
    "set": Param(
        settings.set,
        type="array",
        title="Settings",
        description="section.key=value, one a line, over the config. {run_id} and {date} are filled in.",
    ),
    "date": Param(
        None,
        type=["null", "string"],
        title="Another date's run",
        description="ISO date or time. Empty: the data interval's.",
    ),
    "publish_anyway": Param(
        None, type=["null", "string"], title="Publish anyway", description="The reason, kept in the manifest."
    ),
    "exports": Param(
        settings.exports,
        type="array",
        items={"type": "object"},
        title="Exports",
        description="Options of jobs/export.py, an object each: format, to, and optionally since and depth.",
    ),
}

with DAG(
    dag_id="rerank_nightly",
    schedule=settings.nightly_schedule(),
    start_date=datetime(2020, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=settings.run_timeout_hours),
    default_args=settings.task_defaults() | {"on_failure_callback": alert},
    params=PARAMS,
    doc_md=__doc__,
    tags=["lakerank"],
) as dag:
    plan = LakeJob(
        task_id="plan",
        arguments=["--stage", "plan"],
        execution_timeout=settings.timeout("plan"),
        **settings.job("rerank"),
    )
    score = LakeJob(
        task_id="score",
        arguments=["--stage", "score"],
        execution_timeout=settings.timeout("score"),
        **settings.gpu_job("rerank"),
    )
    audit_and_publish = LakeJob(
        task_id="audit_and_publish",
        arguments=["--stage", "publish"],
        options={"publish_anyway": "--publish-anyway"},
        outlets=[PUBLISHED],
        execution_timeout=settings.timeout("audit_and_publish"),
        **settings.job("rerank"),
    )
    evaluate = LakeJob(
        task_id="evaluate",
        unless_false=("audit_and_publish", "has_qrels"),
        execution_timeout=settings.timeout("evaluate"),
        **settings.job("evaluate"),
    )

    @task(trigger_rule="none_failed", inlets=[EXPORTED])
    def choose_exports() -> list[list[str]]:
        """The command line's part of each export that the run's Params ask for."""
        context = get_current_context()
        run_id = run_name(moment_of(context["dag_run"], context["params"], settings.timezone))
        exported = [event.extra for event in context["inlet_events"][EXPORTED]]
        return [export_arguments(export, run_id, exported) for export in context["params"]["exports"]]

    exports = choose_exports()
    export = LakeJob.partial(
        task_id="export",
        outlets=[EXPORTED],
        execution_timeout=settings.timeout("export"),
        **settings.job("export"),
    ).expand(arguments=exports)

    plan >> score >> audit_and_publish >> evaluate >> exports
