"""### Rerank the lake and publish the lists

`ingest → candidates → check → plan → score → audit_and_publish`, then `evaluate` beside `export → load`, each a job of
its own under `spark-submit`. `ingest` and `candidates` are there where the lake's settings ask for them. Only `score`
holds GPUs: it has its own connection (`lakerank_gpu`), pool (`lakerank_gpu`) and Spark properties.

**Which run.** The run is named after the start of the data interval, in UTC: `run-2026-01-31T020000Z`, with the lake's
name instead of `run` where it has one. A retry, a cleared task or a backfill of that moment resumes that run: finished
work units are never scored again, and a published run is left as it is.

**When it starts.** By the schedule, or when the Asset `lakerank_candidates` is updated. One run at a time. When a run
is published, the Asset `lakerank_published` is updated, with the run's id and counts in the event.

**When it is red.** *At `check`*: a table is missing, or has fewer rows than `min_rows` says. *At `audit_and_publish`*:
an audit failed, nothing was published and the old run is still current. The message names the audit; the task's log has
the figures. Put the lake or the bounds right and clear the task, or trigger the same date again with `publish_anyway`
and a reason. *At `evaluate`*: the run is published, exported and loaded all the same. *Elsewhere*: after its retries.
Read the message, put the cause right, clear the failed task: work that is finished is kept.

**What it takes.** Defaults come from the lake's settings; each run's Params can differ. See docs/airflow.md.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, Param, chain, get_current_context, task

from lake_tasks.exports import choose
from lake_tasks.lake_job import LakeJob
from lake_tasks.lakes import read_lakes
from lake_tasks.load import LoadExport
from lake_tasks.run_names import LakeRun, moment_of
from lake_tasks.settings import Settings


def rerank_nightly(lake: Settings) -> DAG:
    """The DAG of a lake."""
    with DAG(
        dag_id=lake.name("rerank_nightly"),
        schedule=lake.nightly_schedule(),
        start_date=datetime(2020, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        dagrun_timeout=timedelta(hours=lake.run_timeout_hours),
        default_args=lake.task_defaults(),
        params=nightly_params(lake),
        doc_md=__doc__,
        tags=lake.tags,
    ) as dag:
        published = LakeJob(
            arguments=["--stage", "publish"],
            options={"publish_anyway": "--publish-anyway"},
            outlets=[lake.published_asset],
            **lake.job("rerank", "audit_and_publish"),
        )
        chain(*tables_tasks(lake), *scoring_tasks(lake), published)
        # Beside each other: readers have the run already, whatever its figures turn out to be.
        published >> LakeJob(unless_false=(published.task_id, "has_qrels"), **lake.job("evaluate"))
        published >> export_tasks(lake, published.task_id)
    return dag


def tables_tasks(lake: Settings) -> list[LakeJob]:
    """What fills the tables, where it is this DAG that does, and looks whether they are full."""
    tasks = []
    if lake.ingest:
        ingest = LakeJob.partial(names_run=False, **lake.job("ingest"))
        tasks.append(ingest.expand(arguments=lake.ingest_arguments()))
    if lake.candidates is not None:
        arguments = lake.candidates_arguments()
        tasks.append(LakeJob(arguments=arguments, names_run=False, **lake.job("candidates")))
    return [*tasks, LakeJob(arguments=lake.check_arguments(), **lake.job("rerank", "check"))]


def scoring_tasks(lake: Settings) -> list[LakeJob]:
    """What computes the scores that are missing."""
    return [
        LakeJob(arguments=["--stage", "plan"], **lake.job("rerank", "plan")),
        LakeJob(arguments=["--stage", "score"], **lake.gpu_job("rerank", "score")),
    ]


def export_tasks(lake: Settings, publishing: str) -> object:
    """What hands a published run on; returns the first of the tasks."""

    @task(inlets=[lake.exported_asset])
    def choose_exports() -> list[list[str]]:
        """The command line's part of each export that the run's Params ask for."""
        context = get_current_context()
        run = LakeRun(moment_of(context["dag_run"], context["params"], lake.timezone), lake.lake)
        exported = [event.extra for event in context["inlet_events"][lake.exported_asset]]
        return choose(context["params"]["exports"], run.run_id, exported)

    exports = choose_exports()
    export = LakeJob.partial(outlets=[lake.exported_asset], **lake.job("export")).expand(arguments=exports)
    LoadExport.partial(task_id="load", publishing=publishing, execution_timeout=lake.timeout("load")).expand(
        export=export.output
    )
    return exports


def nightly_params(lake: Settings) -> dict[str, Param]:
    """What a run by hand can have otherwise."""
    return {
        "config": Param(lake.config, type="string", title="Config", description="Config file, below home or absolute."),
        "set": Param(
            lake.set,
            type="array",
            title="Settings",
            description="section.key=value, one a line, over the config. {run_id}, {date} and {lake} are filled in.",
        ),
        "date": Param(
            None,
            type=["null", "string"],
            title="Another date's run",
            description="ISO date or time, with an offset in the hour that comes twice. Empty: the data interval's.",
        ),
        "publish_anyway": Param(
            None, type=["null", "string"], title="Publish anyway", description="The reason, kept in the manifest."
        ),
        "exports": Param(
            lake.exports,
            type="array",
            items={"type": "object"},
            title="Exports",
            description="Options of jobs/export.py, an object each: format, to, and optionally since, depth and load.",
        ),
    }


dags = [rerank_nightly(lake) for lake in read_lakes()]
