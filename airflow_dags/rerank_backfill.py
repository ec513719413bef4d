"""### Rerank a range of dates

Starts `rerank_nightly` for each moment of its schedule between two dates, oldest first, and waits for it. At most
`backfill_at_once` of them (see docs/airflow.md) are under way or waiting; `rerank_nightly` itself runs one at a
time, so runs are published in the order of their dates and the last date is current in the end.

A date that has a run already resumes it: a published run is not changed. A date that fails does not stop later
ones; this DAG is red in the end, and clearing its red task tries that date again.

`set` is passed on: with `lake.candidates=s3://lake/candidates/dt={date}` each date reads its own candidates.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG, Param, get_current_context, task

from lake_tasks.lakes import read_lakes
from lake_tasks.run_names import moments
from lake_tasks.settings import Settings


def rerank_backfill(lake: Settings) -> DAG:
    """The DAG of a lake."""
    params = {
        "first": Param(None, type="string", format="date", title="First date"),
        "last": Param(None, type="string", format="date", title="Last date"),
        "set": Param(
            lake.set,
            type="array",
            title="Settings",
            description="section.key=value, one a line, over the config. {run_id} and {date} are filled in.",
        ),
    }
    with DAG(
        dag_id=lake.name("rerank_backfill"),
        schedule=None,
        start_date=datetime(2020, 1, 1, tzinfo=UTC),
        max_active_runs=1,
        params=params,
        doc_md=__doc__,
        tags=lake.tags,
    ) as dag:

        @task
        def choose_dates() -> list[dict[str, Any]]:
            """The schedule's moments in the range, oldest first; midnights where there is no schedule."""
            params = get_current_context()["params"]
            dates = moments(lake.schedule, lake.timezone, params["first"], params["last"])
            return [
                {
                    "trigger_run_id": f"rerank_{moment}",
                    "run_after": moment,
                    "conf": {"date": moment, "set": params["set"]},
                }
                for moment in dates
            ]

        TriggerDagRunOperator.partial(
            task_id="rerank",
            trigger_dag_id=lake.name("rerank_nightly"),
            reset_dag_run=True,
            wait_for_completion=True,
            deferrable=True,
            fail_when_dag_is_paused=True,
            poke_interval=lake.poll_seconds,
            max_active_tis_per_dagrun=lake.backfill_at_once,
            map_index_template="{{ task.trigger_run_id }}",
            retries=0,
        ).expand_kwargs(choose_dates())
    return dag


dags = [rerank_backfill(lake) for lake in read_lakes()]
