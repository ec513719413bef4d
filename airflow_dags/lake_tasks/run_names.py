"""The lakerank run of a DAG run: named after its moment, so that repeating the moment resumes the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
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


def run_name(moment: datetime, lake: str | None = None) -> str:
    """The run's id: run-2026-01-31T020000Z, or products-2026-01-31T020000Z for the lake of that name.

    In UTC, to the microsecond where there is one: two moments never have one name, not in the hour that comes twice
    when clocks go back either. Letters in front: no reader of `run_id=…` takes it for a date.
    """
    utc = moment.astimezone(UTC)
    fraction = f".{utc:%f}" if utc.microsecond else ""
    return f"{lake or 'run'}-{utc:%Y-%m-%dT%H%M%S}{fraction}Z"


@dataclass(frozen=True, slots=True)
class LakeRun:
    """A run of a lake. `moment` is in the deployment's time zone; `lake` is None where there is but one."""

    moment: datetime
    lake: str | None = None

    @property
    def run_id(self) -> str:
        """The run's id in the lake."""
        return run_name(self.moment, self.lake)

    def fill(self, text: str) -> str:
        """`text` with {run_id}, {date} and {lake} replaced. Other braces, which YAML uses, are left alone."""
        date = self.moment.strftime("%Y-%m-%d")
        return text.replace("{run_id}", self.run_id).replace("{date}", date).replace("{lake}", self.lake or "run")


def moments(cron: str | None, timezone: str, first: str, last: str) -> list[str]:
    """A schedule's moments from the first date to the end of the last, oldest first, as ISO 8601 with an offset.

    Without a schedule: each date's midnight.

    Raises:
        ValueError: the first date is after the last.
    """
    from airflow.sdk.timezone import coerce_datetime
    from airflow.timetables.base import TimeRestriction
    from airflow.timetables.trigger import CronTriggerTimetable

    zone = ZoneInfo(timezone)
    begin, end = (datetime.fromisoformat(date).replace(tzinfo=zone) for date in (first, last))
    if end < begin:
        raise ValueError(f"the first date, {first}, is after the last, {last}")
    timetable = CronTriggerTimetable(cron or "0 0 * * *", timezone=timezone)
    last_moment = end + timedelta(days=1, microseconds=-1)
    inside = TimeRestriction(coerce_datetime(begin), coerce_datetime(last_moment), catchup=True)
    result: list[str] = []
    info = timetable.next_dagrun_info(last_automated_data_interval=None, restriction=inside)
    while info is not None:
        result.append(info.run_after.astimezone(zone).isoformat())
        info = timetable.next_dagrun_info(last_automated_data_interval=info.data_interval, restriction=inside)
    return result
