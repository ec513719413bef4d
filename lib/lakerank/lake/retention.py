"""Which runs of a lake are to be kept, and what each of them needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
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

    `scorers` is None for a run that has neither announced itself nor a plan. `attempts` has the plan that counts for
    each pass, by the pass's folder below `plan/` ("" for the first, "pass-2/" …). `units` are named by scorer.
    """

    run_id: str
    published: bool
    kept: bool
    scorers: frozenset[str] | None
    attempts: Mapping[str, str]
    units: Mapping[str, frozenset[str]]
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
        passes = list(_passes_of(manifest))
        attempts = {pass_folder(number): attempt for number, (_, attempt, _) in enumerate(passes, start=1)}
        units = _by_scorer((scorer, units) for scorer, _, units in passes)
        return RunState(run_id, True, kept, frozenset(units), attempts, units, frozenset(files))
    except (KeyError, TypeError) as error:
        raise _unreadable(paths.manifest, error) from error


def _passes_of(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    """Scorer, attempt and units of each pass. The manifest of a run of one scorer says them at its top."""
    one = {"scorer": manifest["scorer"], "attempt": manifest["plan"]["attempt"]}
    for each in manifest.get("passes") or [{**manifest, **one}]:
        yield each["scorer"], each["attempt"], [*each["units"], *each["reused_units"]]


def _unpublished(
    storage: Storage, output: str, run_id: str, scores: Iterable[StoredFile], latest: float, oldest: float
) -> RunState:
    """A run without a manifest: kept while it, or a unit of one of its plans, was written after `oldest`."""
    announced = read_json(storage, RunPaths(output, run_id).started) or {}
    named = announced.get("scorers") or [announced.get("scorer")]
    scorers = {scorer for scorer in named if scorer is not None}
    attempts, units, own = {}, [], set()
    for number in count(1):
        paths = RunPaths(output, run_id, number)
        plan = read_json(storage, paths.plan_file)
        if plan is None:
            break
        try:
            folder = join(paths.plan, plan["attempt"])
            planned = PlannedUnits(storage, folder, tuple(plan["unit_counts"]))
            units.append((plan["scorer"], [*planned, *read_reused_units(storage, folder)]))
            attempts[pass_folder(number)] = plan["attempt"]
            own |= {unit_uri(output, plan["scorer"], unit) for unit in planned}
        except (KeyError, TypeError) as error:
            raise _unreadable(paths.plan_file, error) from error
    latest = max([latest, *(file.written for file in scores if file.uri in own)])
    scorers |= {scorer for scorer, _ in units}
    known = frozenset(scorers) if scorers else None
    return RunState(run_id, False, latest > oldest, known, attempts, _by_scorer(units), frozenset())


def _by_scorer(passes: Iterable[tuple[str, Sequence[str]]]) -> dict[str, frozenset[str]]:
    """Units by scorer; two passes of a run may share one."""
    held: dict[str, frozenset[str]] = {}
    for scorer, units in passes:
        held[scorer] = held.get(scorer, frozenset()) | frozenset(units)
    return held


def pass_folder(number: int) -> str:
    """The folder of a pass's plan below the run's `plan/`, with its slash."""
    return "" if number == 1 else f"pass-{number}/"


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
