"""The lakerank run of a DAG run: named after its moment, so that repeating the moment resumes the run."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo


def moment_of(dag_run: Any, params: Mapping[str, Any], timezone: str) -> datetime:
    """The moment of a DAG run, in the deployment's time zone.

    Its `date` Param where there is one; else the start of its data interval, which the timetable makes equal to the
    logical date (a run triggered by hand for a date has that logical date, but the interval of the hour it was
    triggered in); else, for a run that an Asset started, the moment when it was.
    """
    zone = ZoneInfo(timezone)
    if params.get("date"):
        given = datetime.fromisoformat(params["date"])
        return given.astimezone(zone) if given.tzinfo else given.replace(tzinfo=zone)
    return (dag_run.logical_date or dag_run.run_after).astimezone(zone)


def run_name(moment: datetime) -> str:
    """The run's id: 2026-01-31 for midnight, 2026-01-31T020000 for any other time."""
    return moment.strftime("%Y-%m-%dT%H%M%S").removesuffix("T000000")


def filled(text: str, moment: datetime) -> str:
    """`text` with {run_id} and {date} replaced. Other braces, which YAML uses, are left alone."""
    return text.replace("{run_id}", run_name(moment)).replace("{date}", moment.strftime("%Y-%m-%d"))


def moments(cron: str | None, timezone: str, first: str, last: str) -> list[str]:
    """A schedule's moments from the first date to the end of the last, oldest first, as ISO 8601 with an offset.

    Without a schedule: each date's midnight.

    Raises:
        ValueError: the first date is after the last.
    """
    from airflow.timetables.base import TimeRestriction
    from airflow.timetables.trigger import CronTriggerTimetable

    zone = ZoneInfo(timezone)
    begin, end = (datetime.fromisoformat(date).replace(tzinfo=zone) for date in (first, last))
    if end < begin:
        raise ValueError(f"the first date, {first}, is after the last, {last}")
    timetable = CronTriggerTimetable(cron or "0 0 * * *", timezone=timezone)
    inside = TimeRestriction(begin, end + timedelta(days=1, microseconds=-1), catchup=True)
    result: list[str] = []
    info = timetable.next_dagrun_info(last_automated_data_interval=None, restriction=inside)
    while info is not None:
        result.append(info.run_after.astimezone(zone).isoformat())
        info = timetable.next_dagrun_info(last_automated_data_interval=info.data_interval, restriction=inside)
    return result
