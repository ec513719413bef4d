"""Settings of a deployment: the Airflow Variable `lakerank`, a JSON object. Every key has a default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import Asset, AssetOrTimeSchedule, CronTriggerTimetable, Variable

from lake_tasks.places import below

#: Whoever lands new candidates names this Asset as an outlet; that starts a run.
CANDIDATES = Asset("lakerank_candidates")
#: Emitted when a run is published, with the run's id and counts.
PUBLISHED = Asset("lakerank_published")
#: Updated by each export, with the export's summary in the event.
EXPORTED = Asset("lakerank_exported")

VARIABLE = "lakerank"

#: Minutes that one try of a task may take.
TIMEOUTS = {"plan": 120, "score": 1440, "audit_and_publish": 240, "evaluate": 120, "export": 240, "clean": 240}


@dataclass(frozen=True, slots=True)
class Settings:
    """The Variable's keys, documented in docs/airflow.md.

    Everything but schedules, limits and Spark arguments is only a default of the DAGs' Params.
    """

    home: str = str(Path(__file__).resolve().parents[2])
    config: str = "conf/demo.yaml"
    set: list[str] = field(default_factory=list)
    exports: list[dict[str, Any]] = field(default_factory=list)
    schedule: str | None = "0 2 * * *"
    timezone: str = "UTC"
    on_candidates: bool = True
    clean_schedule: str | None = "0 12 * * 0"
    keep_runs: int = 30
    summaries: str | None = None
    report_url: str | None = None
    cpu: dict[str, Any] = field(default_factory=dict)
    gpu: dict[str, Any] = field(default_factory=dict)
    retries: int = 3
    retry_minutes: float = 1
    retry_minutes_max: float = 30
    timeout_minutes: dict[str, float] = field(default_factory=dict)
    run_timeout_hours: float = 36
    backfill_at_once: int = 1
    poll_seconds: int = 60

    @classmethod
    def read(cls) -> Settings:
        """The present settings. They include the schedule, so they are read when DAG files are parsed.

        Raises:
            ValueError: a key is not known, or not of the type of its default.
        """
        return cls.of(Variable.get(VARIABLE, default={}, deserialize_json=True))

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Settings:
        """Settings from the Variable's value; raises as `read` does, with all faults at once."""
        if not isinstance(given, Mapping):
            raise ValueError(f"Variable {VARIABLE!r}: expected a JSON object; see docs/airflow.md")
        known = {f.name for f in fields(cls)}
        faults = [f"{key}: no such setting" for key in given if key not in known]
        settings = cls(**{key: value for key, value in given.items() if key in known})
        defaults = cls()
        for name in known & given.keys():
            default, value = getattr(defaults, name), given[name]
            if isinstance(default, (list, dict)) and not isinstance(value, type(default)):
                faults.append(f"{name}: expected a JSON {'array' if isinstance(default, list) else 'object'}")
        if faults:
            raise ValueError(f"Variable {VARIABLE!r}: {'; '.join(sorted(faults))}; see docs/airflow.md")
        return settings

    def job(self, name: str) -> dict[str, Any]:
        """Arguments of LakeJob for a job on the cluster that needs no GPU."""
        return self._job(name) | self._spark({"conn_id": "lakerank_cpu", **self.cpu})

    def gpu_job(self, name: str) -> dict[str, Any]:
        """Arguments of LakeJob for scoring: its own connection and pool."""
        return self._job(name) | self._spark({"conn_id": "lakerank_gpu", "pool": "lakerank_gpu", **self.gpu})

    def _job(self, name: str) -> dict[str, Any]:
        return {
            "job": name,
            "home": self.home,
            "summaries": below(self.home, self.summaries or "out/airflow"),
            "timezone": self.timezone,
            "report_url": self.report_url,
        }

    def _spark(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if "properties_file" in arguments:
            arguments["properties_file"] = below(self.home, arguments["properties_file"])
        return arguments

    def cron(self, expression: str | None) -> CronTriggerTimetable | None:
        """A timetable whose runs begin at the moment that they are named after."""
        return CronTriggerTimetable(expression, timezone=self.timezone) if expression else None

    def nightly_schedule(self) -> Any:
        """By the clock, by candidates that land, by both, or only by hand."""
        cron = self.cron(self.schedule)
        if not self.on_candidates:
            return cron
        return AssetOrTimeSchedule(timetable=cron, assets=[CANDIDATES]) if cron else [CANDIDATES]

    def task_defaults(self) -> dict[str, Any]:
        """default_args: retries with exponential back-off."""
        return {
            "retries": self.retries,
            "retry_delay": timedelta(minutes=self.retry_minutes),
            "retry_exponential_backoff": True,
            "max_retry_delay": timedelta(minutes=self.retry_minutes_max),
        }

    def timeout(self, task: str) -> timedelta:
        """How long one try of a task may take."""
        return timedelta(minutes=(TIMEOUTS | self.timeout_minutes)[task])
