"""Settings of a lake's DAGs, documented in docs/airflow.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import Asset, AssetOrTimeSchedule, CronTriggerTimetable

from lake_tasks.alerts import alert
from lake_tasks.exports import export_faults, option_words
from lake_tasks.places import below

#: Minutes that one try of a task may take.
TIMEOUTS = {
    "ingest": 240, "candidates": 240, "check": 30, "plan": 120, "score": 1440, "audit_and_publish": 240,
    "evaluate": 120, "export": 240, "load": 240, "clean": 240,
}  # fmt: skip

TABLES = ("documents", "queries", "candidates")


@dataclass(frozen=True, slots=True)
class Settings:
    """The keys of a lake; `lake` is its name, None where there is but one.

    Everything but schedules, limits, Spark arguments and what comes before planning is only a default of Params.
    """

    config: str
    home: str = str(Path(__file__).resolve().parents[2])
    set: list[str] = field(default_factory=list)
    ingest: list[dict[str, Any]] = field(default_factory=list)
    candidates: dict[str, Any] | None = None
    min_rows: dict[str, int] = field(default_factory=dict)
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
    lake: str | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any], lake: str | None = None) -> tuple[Settings, list[str]]:
        """Settings, and every fault of what was given: keys that are missing or not known, values of other types."""
        types = {f.name: str(f.type) for f in fields(cls) if f.name != "lake"}
        faults = [f"{key}: no such setting" for key in given if key not in types]
        if "config" not in given:
            faults.append("config: missing: the config of the lake, a path")
        wrong = {key: type_fault(given[key], types[key]) for key in types.keys() & given.keys()}
        faults += [f"{key}: {fault}" for key, fault in wrong.items() if fault]
        right = {key: given[key] for key, fault in wrong.items() if not fault}
        settings = cls(**{"config": "", **right}, lake=lake)
        return settings, [*faults, *settings._faults()]

    def _faults(self) -> list[str]:
        """What no type shows."""
        faults = [f"exports: {fault}" for export in self.exports for fault in export_faults(export)]
        faults += [f"min_rows: {name}: no such table ({', '.join(TABLES)})" for name in self.min_rows.keys() - TABLES]
        faults += [f"timeout_minutes: {task}: no such task" for task in self.timeout_minutes.keys() - TIMEOUTS.keys()]
        if not all(isinstance(source, dict) and source.keys() >= {"source", "output"} for source in self.ingest):
            faults.append("ingest: expected objects with source, output and other options of jobs/ingest.py")
        return faults

    def name(self, base: str) -> str:
        """What a DAG or an Asset is called: `base`, and the lake's name where it has one."""
        return f"{base}_{self.lake}" if self.lake else base

    @property
    def tags(self) -> list[str]:
        """Of the lake's DAGs."""
        return ["lakerank", *([self.lake] if self.lake else [])]

    @property
    def candidates_asset(self) -> Asset:
        """Whoever lands new candidates names this Asset as an outlet; that starts a run."""
        return Asset(self.name("lakerank_candidates"))

    @property
    def published_asset(self) -> Asset:
        """Emitted when a run is published, with the run's id and counts."""
        return Asset(self.name("lakerank_published"))

    @property
    def exported_asset(self) -> Asset:
        """Updated by each export, with the export's summary in the event."""
        return Asset(self.name("lakerank_exported"))

    def job(self, name: str, task: str | None = None) -> dict[str, Any]:
        """Arguments of LakeJob for a job on the cluster that needs no GPU; `task` is its id where that is another."""
        return self._job(name, task or name) | self._spark({"conn_id": "lakerank_cpu", **self.cpu})

    def gpu_job(self, name: str, task: str) -> dict[str, Any]:
        """Arguments of LakeJob for scoring: its own connection and pool."""
        gpu = {"conn_id": "lakerank_gpu", "pool": "lakerank_gpu", **self.gpu}
        return self._job(name, task) | self._spark(gpu)

    def _job(self, name: str, task: str) -> dict[str, Any]:
        return {
            "task_id": task,
            "job": name,
            "home": self.home,
            "summaries": below(self.home, self.summaries or "out/airflow"),
            "timezone": self.timezone,
            "lake": self.lake,
            "report_url": self.report_url,
            "execution_timeout": self.timeout(task),
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
        cron, assets = self.cron(self.schedule), [self.candidates_asset]
        if not self.on_candidates:
            return cron
        return AssetOrTimeSchedule(timetable=cron, assets=assets) if cron else assets

    def task_defaults(self) -> dict[str, Any]:
        """default_args: retries with exponential back-off."""
        return {
            "retries": self.retries,
            "retry_delay": timedelta(minutes=self.retry_minutes),
            "retry_exponential_backoff": True,
            "max_retry_delay": timedelta(minutes=self.retry_minutes_max),
            "on_failure_callback": alert,
        }

    def timeout(self, task: str) -> timedelta:
        """How long one try of a task may take."""
        return timedelta(minutes=(TIMEOUTS | self.timeout_minutes)[task])

    def ingest_arguments(self) -> list[list[str]]:
        """The command line's part of each source that is ingested."""
        return [
            [source["source"], *option_words({name: value for name, value in source.items() if name != "source"})]
            for source in self.ingest
        ]

    def candidates_arguments(self) -> list[str]:
        """The command line's part of the first stage."""
        return option_words(self.candidates or {})

    def check_arguments(self) -> list[str]:
        """The command line's part of the check."""
        bounds = [word for table, rows in self.min_rows.items() for word in ("--min-rows", f"{table}={rows}")]
        return ["--stage", "check", *bounds]


#: Types by the annotation of a setting, and what a message calls them.
_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "a string"),
    "bool": ((bool,), "true or false"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "list": ((list,), "an array"),
    "dict": ((dict,), "an object"),
}


def type_fault(value: Any, annotation: str) -> str | None:
    """Why a value is not of the annotated type; None when it is."""
    name, _, null = annotation.partition(" | ")
    types, words = _TYPES[name.partition("[")[0]]
    if (null and value is None) or (isinstance(value, types) and (bool in types or not isinstance(value, bool))):
        return None
    return f"expected {words}{' or null' if null else ''}"
