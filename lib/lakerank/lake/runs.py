"""A run as it lies in the lake: its folders, its manifest, and the pointer that says which run readers see."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from lakerank.errors import ConfigError, StorageError
from lakerank.lake.storage import Storage, join

#: Each failed try means that another run was published in between.
_POINTER_TRIES = 50
_RUN_ID = re.compile(r"[A-Za-z0-9_:+-][A-Za-z0-9._:+-]{0,127}")


@dataclass(frozen=True, slots=True)
class RunPaths:
    """Where everything of one run lies below the output folder. A run of several scorers has a plan for each pass."""

    output: str
    run_id: str
    pass_number: int = 1

    def of_pass(self, number: int) -> RunPaths:
        """The same run, its pass of that number: only where the plan lies differs."""
        return replace(self, pass_number=number)

    @property
    def folder(self) -> str:
        return join(self.output, "runs", self.run_id)

    @property
    def config(self) -> str:
        return join(self.folder, "config.yaml")

    @property
    def plan(self) -> str:
        first = join(self.folder, "plan")
        return first if self.pass_number == 1 else join(first, f"pass-{self.pass_number}")

    @property
    def plan_file(self) -> str:
        return join(self.plan, "plan.json")

    @property
    def started(self) -> str:
        return join(self.folder, "started.json")

    @property
    def manifest(self) -> str:
        return join(self.folder, "manifest.json")

    @property
    def report(self) -> str:
        return join(self.folder, "report.html")

    @property
    def ranked(self) -> str:
        return join(self.output, "ranked", f"run_id={self.run_id}")

    @property
    def rejected(self) -> str:
        return join(self.output, "rejected", f"run_id={self.run_id}")

    @property
    def current(self) -> str:
        return join(self.output, "current.json")


def check_run_id(run_id: str) -> None:
    """Refuse a run id that could not be a folder's name everywhere.

    Raises:
        ConfigError: says what an id may hold.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise ConfigError(
            [f"run id {run_id!r}: expected 1 to 128 ASCII letters, digits and . _ - : +, not beginning with a dot"]
        )


def announce(storage: Storage, paths: RunPaths, scorer: str, scorers: Sequence[str] = ()) -> None:
    """Say that a job is about to plan or go on with a run, before it reads what others may want to delete.

    `scorers` names those of all passes where there are several: none of their scores may be deleted meanwhile.
    """
    moment = datetime.now(UTC).isoformat(timespec="microseconds")
    several = {"scorers": list(scorers)} if scorers else {}
    storage.replace(
        paths.started, _json_bytes({"run_id": paths.run_id, "scorer": scorer, "started_at": moment} | several)
    )


def write_manifest(storage: Storage, paths: RunPaths, manifest: Mapping[str, Any]) -> bool:
    """Write what a run consists of, once; False when the run has a manifest already."""
    return storage.create(paths.manifest, _json_bytes(manifest))


def read_manifest(storage: Storage, output: str, run_id: str) -> dict[str, Any] | None:
    """A run's manifest; None when it has none yet."""
    return read_json(storage, RunPaths(output, run_id).manifest)


def publish(storage: Storage, paths: RunPaths, published_at: str) -> bool:
    """Point readers at a run whose manifest is written; False, and nothing done, when a later run is published.

    `published_at` is ISO 8601 (UTC when it names no zone). Publishing the same run again changes nothing. Of runs
    published at once the latest stays: the pointer is replaced only where it is still what was compared with.

    Raises:
        StorageError: the run has no manifest: the pointer moves last.
    """
    if not storage.exists(paths.manifest):
        raise StorageError(
            f"{paths.manifest}: not there, so run {paths.run_id} is not complete; write the manifest first"
        )
    # Relative to the pointer's own folder, so that a lake may be copied elsewhere.
    pointer = {"run_id": paths.run_id, "manifest": join("runs", paths.run_id, "manifest.json")}
    pointer["published_at"] = published_at
    for _ in range(_POINTER_TRIES):
        version = storage.version(paths.current)
        current = current_run(storage, paths.output)
        if current == pointer:
            return True
        if current is not None and _order(current) > _order(pointer):
            return False
        if storage.replace_if(paths.current, _json_bytes(pointer), version):
            return True
    raise StorageError(f"{paths.current}: changed {_POINTER_TRIES} times while run {paths.run_id} was to be published")


def current_run(storage: Storage, output: str) -> dict[str, Any] | None:
    """The pointer to the published run: run_id, manifest (relative to the output), published_at; None before any."""
    return read_json(storage, RunPaths(output, "").current)


def _order(pointer: Mapping[str, Any]) -> tuple[datetime, str]:
    """Pointers by age; the run id decides between two of the same microsecond."""
    return _moment(pointer["published_at"]), pointer["run_id"]


def _moment(published_at: str) -> datetime:
    moment = datetime.fromisoformat(published_at)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def read_json(storage: Storage, uri: str) -> dict[str, Any] | None:
    """A JSON object in the lake; None when the file is not there."""
    try:
        value = json.loads(storage.read_bytes(uri))
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    except ValueError as error:
        raise StorageError(f"{uri}: not JSON ({error}); it was not written by lakerank") from error
    if not isinstance(value, dict):
        raise StorageError(f"{uri}: expected a JSON object; it was not written by lakerank")
    return value
