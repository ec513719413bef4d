"""Runs in the lake: their folders, manifests, and what each of them needs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import Any

from lakerank.errors import ConfigError, StorageError
from lakerank.lake.checksums import check_yaml, json_bytes, parse_json, yaml_bytes
from lakerank.lake.scores import PlannedUnits, read_reused_units, unit_address
from lakerank.lake.storage import Storage, join

_RUN_ID = re.compile(r"[A-Za-z0-9_:+-][A-Za-z0-9._:+-]{0,127}")


class RunPaths:
    """Where a run's files are, below the output folder. A run of several scorers has a plan for each stage."""

    def __init__(self, output: str, run_id: str, stage: int = 1) -> None:
        self.output, self.run_id, self.stage = output, run_id, stage
        self.folder = join(output, "runs", run_id)
        self.config = join(self.folder, "config.yaml")
        self.started = join(self.folder, "started.json")
        self.manifest = join(self.folder, "manifest.json")
        self.report = join(self.folder, "report.html")
        self.plan = join(self.folder, "plan", stage_folder(stage))
        self.plan_file = join(self.plan, "plan.json")
        self.ranked = join(output, "ranked", f"run_id={run_id}")
        self.rejected = join(output, "rejected", f"run_id={run_id}")
        self.explanations = join(output, "explanations", f"run_id={run_id}")
        #: Ranked lists of a run that is not published because its audit failed.
        self.unpublished = join(output, "unpublished", f"run_id={run_id}")
        self.current = join(output, "current.json")

    def of_stage(self, number: int) -> RunPaths:
        """The same run at another stage: only the plan's folder differs."""
        return RunPaths(self.output, self.run_id, number)


@dataclass(frozen=True, slots=True)
class RunContents:
    """What a run's manifest, or its announcement and plans, name.

    `scorers` are names of scorers, and of encoders whose states are kept; None for an unpublished run that has neither
    announced itself nor a plan. `attempts` has the valid plan of each stage, by the stage's folder below `plan/` (""
    for the first, "pass-2/" …). `units` are named by scorer. `ranked` has the URIs of a published run's ranked and
    rejected files; `planned` those of the unit files that an unpublished run writes itself.
    """

    run_id: str
    published: bool
    scorers: frozenset[str] | None
    attempts: Mapping[str, str]
    units: Mapping[str, frozenset[str]]
    ranked: frozenset[str] = frozenset()
    planned: frozenset[str] = frozenset()


def stage_folder(number: int) -> str:
    """The folder of a stage's plan below the run's `plan/`, with its slash; "" for the first stage."""
    return "" if number == 1 else f"pass-{number}/"


def check_run_id(run_id: str) -> None:
    """Check that a run id can be a folder's name everywhere.

    Raises:
        ConfigError: says which characters an id may have.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise ConfigError(
            [f"run id {run_id!r}: expected 1 to 128 ASCII letters, digits and . _ - : +, not beginning with a dot"]
        )


def announce(storage: Storage, paths: RunPaths, scorer: str, scorers: Sequence[str] = ()) -> None:
    """Announce that a job plans or resumes a run, before it reads what cleaning may delete.

    `scorers` names those of all stages where there are several: none of their scores may be deleted meanwhile.
    """
    moment = datetime.now(UTC).isoformat(timespec="microseconds")
    announcement = {"run_id": paths.run_id, "scorer": scorer, "started_at": moment}
    storage.replace(paths.started, json_bytes(announcement | ({"scorers": list(scorers)} if scorers else {})))


def write_config(storage: Storage, paths: RunPaths, config_yaml: str) -> None:
    """Keep a run's config, as resolved."""
    storage.replace(paths.config, yaml_bytes(config_yaml))


def read_config(storage: Storage, paths: RunPaths) -> bytes | None:
    """A run's config; None when it has none yet. Raises CorruptFile: it is not what was written."""
    data = storage.read_optional(paths.config)
    return None if data is None else check_yaml(paths.config, data)


def write_manifest(storage: Storage, paths: RunPaths, manifest: Mapping[str, Any]) -> bool:
    """Write a run's manifest, once; False when it has one already."""
    return storage.create(paths.manifest, json_bytes(manifest))


def read_manifest(storage: Storage, output: str, run_id: str) -> dict[str, Any] | None:
    """A run's manifest; None when it has none yet."""
    return read_json(storage, RunPaths(output, run_id).manifest)


def published_contents(output: str, run_id: str, manifest: Mapping[str, Any]) -> RunContents:
    """What a published run's manifest names.

    Raises:
        StorageError: the manifest lacks something.
    """
    paths = RunPaths(output, run_id)
    try:
        ranked = {
            join(folder, str(file["file"]).rpartition("/")[2])
            for folder, key in ((paths.ranked, "ranked_files"), (paths.rejected, "rejected_files"))
            for file in manifest[key]
        }
        first = {"scorer": manifest["scorer"], "attempt": manifest["plan"]["attempt"]}
        stages = manifest.get("passes") or [{**manifest, **first}]  # a run of one scorer names them at its top
        attempts = {stage_folder(number): stage["attempt"] for number, stage in enumerate(stages, start=1)}
        encoders = {stage.get("model", {}).get("encoder") for stage in stages}
        units = _by_scorer((stage["scorer"], [*stage["units"], *stage["reused_units"]]) for stage in stages)
    except (KeyError, TypeError) as error:
        raise _incomplete(paths.manifest, error) from error
    scorers = frozenset({*units, *encoders} - {None})
    return RunContents(run_id, True, scorers, attempts, units, ranked=frozenset(ranked))


def planned_contents(storage: Storage, output: str, run_id: str) -> RunContents:
    """What the announcement and the plans of an unpublished run name.

    Raises:
        StorageError: a plan lacks something or cannot be read.
    """
    announcement = read_json(storage, RunPaths(output, run_id).started) or {}
    scorers = {*(announcement.get("scorers") or [announcement.get("scorer")])} - {None}
    attempts, units, planned = {}, [], set()
    for number in count(1):
        paths = RunPaths(output, run_id, number)
        plan = read_json(storage, paths.plan_file)
        if plan is None:
            break
        try:
            folder = join(paths.plan, plan["attempt"])
            names = PlannedUnits(storage, folder, tuple(plan["unit_counts"]))
            units.append((plan["scorer"], [*names, *read_reused_units(storage, folder)]))
            attempts[stage_folder(number)] = plan["attempt"]
            planned |= {unit_address(output, plan["scorer"], unit) for unit in names}
        except (KeyError, TypeError) as error:
            raise _incomplete(paths.plan_file, error) from error
    scorers |= {scorer for scorer, _ in units}
    known = frozenset(scorers) if scorers else None
    return RunContents(run_id, False, known, attempts, _by_scorer(units), planned=frozenset(planned))


def _by_scorer(stages: Iterable[tuple[str, Sequence[str]]]) -> dict[str, frozenset[str]]:
    """Units by scorer; two stages of a run may share one."""
    units: dict[str, frozenset[str]] = {}
    for scorer, names in stages:
        units[scorer] = units.get(scorer, frozenset()) | frozenset(names)
    return units


def _incomplete(uri: str, error: Exception) -> StorageError:
    return StorageError(
        f"{uri}: does not say what its run needs ({type(error).__name__}: {error}), so nothing can be deleted safely; "
        "it was written by another version of lakerank: use that one, or delete the run's folder"
    )


def read_json(storage: Storage, uri: str) -> dict[str, Any] | None:
    """A JSON object in the lake; None when the file is not there."""
    data = storage.read_optional(uri)
    return None if data is None else parse_json(uri, data)
