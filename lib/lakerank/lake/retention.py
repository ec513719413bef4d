"""Which runs of a lake are to be kept, and what each of them needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from lakerank.errors import StorageError
from lakerank.lake.runs import RunPaths, current_run, read_json, read_manifest
from lakerank.lake.storage import Storage, StoredFile, join
from lakerank.lake.unit_lists import PlannedUnits, read_reused_units


@dataclass(frozen=True, slots=True)
class Retention:
    """What to keep. Times are in seconds.

    Of the published runs: the current one, the `keep_runs` latest, and those younger than `keep_s`. An unpublished run
    that has written nothing for `grace_s` is given up; a younger one may be running.
    """

    keep_runs: int = 3
    keep_s: float = 0.0
    grace_s: float = 48 * 3600.0


@dataclass(frozen=True, slots=True)
class RunState:
    """A run as found: whether its manifest is written, whether it is kept, and what it needs then.

    `scorer` is None for a run that has neither announced itself nor a plan. `attempt` is the plan that counts.
    """

    run_id: str
    published: bool
    kept: bool
    scorer: str | None
    attempt: str | None
    units: frozenset[str]
    files: frozenset[str]


def run_states(
    storage: Storage, output: str, found: Mapping[str, Sequence[StoredFile]], retention: Retention, now: float
) -> list[RunState]:
    """Every run that has left a file.

    Args:
        found: every file of the output folder, by the name of the folder in it: runs, ranked, rejected, scores.
        now: Unix time.

    Raises:
        StorageError: a manifest or a plan does not say what it needs: nothing may be deleted then.
    """
    latest = _latest_writes(output, found)
    manifests = {run_id: read_manifest(storage, output, run_id) for run_id in sorted(latest)}
    kept = _kept(storage, output, {run: m for run, m in manifests.items() if m is not None}, retention, now)
    states = []
    for run_id, manifest in manifests.items():
        if manifest is not None:
            states.append(_published(output, run_id, manifest, run_id in kept))
        else:
            states.append(
                _unpublished(storage, output, run_id, found["scores"], latest[run_id], now - retention.grace_s)
            )
    return states


def _latest_writes(output: str, found: Mapping[str, Sequence[StoredFile]]) -> dict[str, float]:
    """When each run last wrote a file of its own, by run id."""
    latest: dict[str, float] = {}
    for folder, prefix in (("runs", ""), ("ranked", "run_id="), ("rejected", "run_id=")):
        for file in found[folder]:
            name, slash, _ = below(output, folder, file.uri).partition("/")
            if slash and name.startswith(prefix):
                run_id = name.removeprefix(prefix)
                latest[run_id] = max(latest.get(run_id, 0.0), file.written)
    return latest


def _kept(
    storage: Storage, output: str, manifests: Mapping[str, Mapping[str, Any]], retention: Retention, now: float
) -> set[str]:
    """Ids of the published runs to keep."""
    moments = {run_id: _moment(manifest["published_at"]) for run_id, manifest in manifests.items()}
    by_age = sorted(moments, key=lambda run_id: (moments[run_id], run_id), reverse=True)
    kept = set(by_age[: retention.keep_runs]) | {run for run in by_age if moments[run] > now - retention.keep_s}
    current = current_run(storage, output)
    return kept | ({current["run_id"]} if current else set())


def _published(output: str, run_id: str, manifest: Mapping[str, Any], kept: bool) -> RunState:
    paths = RunPaths(output, run_id)
    try:
        files = {
            join(folder, str(file["file"]).rpartition("/")[2])
            for folder, name in ((paths.ranked, "ranked_files"), (paths.rejected, "rejected_files"))
            for file in manifest[name]
        }
        units = frozenset([*manifest["units"], *manifest["reused_units"]])
        return RunState(run_id, True, kept, manifest["scorer"], manifest["plan"]["attempt"], units, frozenset(files))
    except (KeyError, TypeError) as error:
        raise _unreadable(paths.manifest, error) from error


def _unpublished(
    storage: Storage, output: str, run_id: str, scores: Iterable[StoredFile], latest: float, oldest: float
) -> RunState:
    """A run without a manifest: kept while it, or a unit of its plan, was written after `oldest`."""
    paths = RunPaths(output, run_id)
    plan = read_json(storage, paths.plan_file)
    announced = read_json(storage, paths.started) or {}
    if plan is None:
        return RunState(run_id, False, latest > oldest, announced.get("scorer"), None, frozenset(), frozenset())
    try:
        folder = join(paths.plan, plan["attempt"])
        planned = PlannedUnits(storage, folder, tuple(plan["unit_counts"]))
        units = frozenset([*planned, *read_reused_units(storage, folder)])
        own = {unit_uri(output, plan["scorer"], unit) for unit in planned}
        latest = max([latest, *(file.written for file in scores if file.uri in own)])
        return RunState(run_id, False, latest > oldest, plan["scorer"], plan["attempt"], units, frozenset())
    except (KeyError, TypeError) as error:
        raise _unreadable(paths.plan_file, error) from error


def below(output: str, folder: str, uri: str) -> str:
    """A file's name below one of the output's folders."""
    return uri.removeprefix(join(output, folder)).lstrip("/")


def unit_uri(output: str, scorer: str, unit: str) -> str:
    """The file of a unit, as a listing of the output folder names it."""
    return join(output, "scores", f"scorer={scorer}", f"{unit}.parquet")


def _moment(published_at: str) -> float:
    moment = datetime.fromisoformat(published_at)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _unreadable(uri: str, error: Exception) -> StorageError:
    return StorageError(
        f"{uri}: does not say what its run needs ({type(error).__name__}: {error}), so nothing can be deleted safely; "
        "it was written by another version of lakerank: use that one, or delete the run's folder"
    )
