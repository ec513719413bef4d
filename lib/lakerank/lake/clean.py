"""Files of an output folder that no kept run needs: found, and deleted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from lakerank.lake.retention import Retention, RunState, below, run_states
from lakerank.lake.runs import RunPaths
from lakerank.lake.storage import PROBE_PREFIX, Storage, StoredFile, join
from lakerank.lake.superseded import superseded_units
from lakerank.lake.tables import index_key
from lakerank.lake.uris import redacted

#: The folders of an output folder that lakerank writes. Nothing else is ever looked at.
FOLDERS = ("runs", "ranked", "rejected", "scores", "index")

#: Files deleted between two looks for jobs that have started.
BATCH = 500

_THREADS = 16
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")
_ATTEMPT = re.compile(r"([^/]+)/plan/((?:pass-[0-9]+/)?)([0-9a-f]+)/.")
_OF_SCORER = re.compile(r"(?:index/)?scores/scorer=([^/]+)/[^./][^/]*\.parquet")
_INDEX = re.compile(r"[a-z]+/([0-9a-f]+)-\d+\.parquet")


@dataclass(frozen=True, slots=True)
class Garbage:
    """A file to delete, and why."""

    file: StoredFile
    why: str


@dataclass(frozen=True, slots=True)
class Survey:
    """What an output folder holds: every run, what may be deleted, and the jobs known of when that was decided."""

    runs: tuple[RunState, ...]
    garbage: tuple[Garbage, ...]
    jobs: Mapping[str, str | None]


def survey(
    storage: Storage,
    output: str,
    retention: Retention,
    scorers: Iterable[str] | None,
    tables: Mapping[str, str],
    now: float,
) -> Survey:
    """Find what no kept run needs. Reads listings, manifests and plans; deletes nothing.

    Args:
        scorers: whose scores are kept beside those of the kept runs; None to keep every scorer's.
        tables: addresses of `documents` and `queries`, whose index is kept.
        now: Unix time.

    Raises:
        StorageError: something cannot be read.
    """
    jobs = started_jobs(storage, output)
    found = {folder: storage.walk(join(output, folder)) for folder in FOLDERS}
    runs = run_states(storage, output, found, retention, now)
    old = now - retention.grace_s
    active = [run for run in runs if run.kept and not run.published]
    garbage = [
        *_temporary([file for files in found.values() for file in files], old),
        *_of_runs(output, found, runs, old),
        *_of_scorers(storage, output, found, runs, scorers, old),
    ]
    if not active:  # a run that is being planned may be reading the index of a file that has just been replaced
        garbage += _stale_index(storage, output, found["index"], tables, old)
    return Survey(tuple(runs), _once(garbage), jobs)


def delete(storage: Storage, output: str, found: Survey, deleted: Callable[[Garbage], None]) -> bool:
    """Delete what a survey found, manifests first, so that none names what is gone; calls `deleted` for each.

    Returns:
        False when a job has started since the survey: it may need what is left, so that is left alone.
    """
    manifests = {RunPaths(output, run.run_id).manifest for run in found.runs}
    ordered = sorted(found.garbage, key=lambda garbage: (garbage.file.uri not in manifests, garbage.file.uri))
    with ThreadPoolExecutor(_THREADS, "clean") as pool:
        for first in range(0, len(ordered), BATCH):
            if started_jobs(storage, output) != found.jobs:
                return False
            batch = ordered[first : first + BATCH]
            for garbage, _ in zip(batch, pool.map(storage.delete, (item.file.uri for item in batch)), strict=True):
                deleted(garbage)
    for folder in FOLDERS:
        storage.remove_empty_folders(join(output, folder))
    return True


def started_jobs(storage: Storage, output: str) -> dict[str, str | None]:
    """Version of each run's announcement: another one means that a job has started since."""
    names = storage.list_names(join(output, "runs"))
    return {name: storage.version(RunPaths(output, name).started) for name in names}


def _once(garbage: Iterable[Garbage]) -> tuple[Garbage, ...]:
    """Each file under the first reason found, in the order of the files."""
    reasons: dict[str, Garbage] = {}
    for item in garbage:
        reasons.setdefault(item.file.uri, item)
    return tuple(reasons[uri] for uri in sorted(reasons))


def _temporary(files: Iterable[StoredFile], old: float) -> Iterator[Garbage]:
    for file in files:
        name = file.uri.rpartition("/")[2]
        if file.written < old and (_TEMPORARY.fullmatch(name) or name.startswith(PROBE_PREFIX)):
            yield Garbage(file, "temporary file")


def _of_runs(
    output: str, found: Mapping[str, Sequence[StoredFile]], runs: Sequence[RunState], old: float
) -> Iterator[Garbage]:
    """Everything of runs that are not kept; of kept ones what their manifest or plan does not name."""
    states = {run.run_id: run for run in runs}
    for folder, prefix in (("runs", ""), ("ranked", "run_id="), ("rejected", "run_id=")):
        for file in found[folder]:
            name, slash, _ = below(output, folder, file.uri).partition("/")
            run = states.get(name.removeprefix(prefix)) if slash and name.startswith(prefix) else None
            if run is None or file.uri.rpartition("/")[2].startswith("."):
                continue
            if not run.kept:
                yield Garbage(file, "old run" if run.published else "unfinished run")
            elif file.written < old and _is_orphan(output, folder, file, run):
                yield Garbage(file, "orphan")


def _is_orphan(output: str, folder: str, file: StoredFile, run: RunState) -> bool:
    if folder != "runs":
        return run.published and file.uri not in run.files
    attempt = _ATTEMPT.match(below(output, folder, file.uri))
    if attempt is None:
        return False
    counts = run.attempts.get(attempt[2])
    return run.published if counts is None else attempt[3] != counts


def _of_scorers(
    storage: Storage,
    output: str,
    found: Mapping[str, Sequence[StoredFile]],
    runs: Sequence[RunState],
    scorers: Iterable[str] | None,
    old: float,
) -> Iterator[Garbage]:
    """Scores, and their index, of scorers that are not kept; of kept ones what is superseded."""
    kept = [run for run in runs if run.kept]
    unknown = any(run.scorers is None for run in kept)
    used = {scorer for run in kept for scorer in run.scorers or ()}
    retained = None if scorers is None or unknown else {*scorers, *used}
    # A run under way may be about to name any of its scorers' files; one that has not said which, any at all.
    running = [run for run in kept if not run.published]
    busy = {scorer for run in running for scorer in run.scorers or ()}
    all_busy = any(run.scorers is None for run in running)
    for scorer, files in _by_scorer(output, [*found["scores"], *found["index"]]).items():
        if retained is not None and scorer not in retained:
            yield from (Garbage(file, "old scorer") for file in files if file.written < old)
        elif not all_busy and scorer not in busy:
            named = frozenset(unit for run in kept for unit in run.units.get(scorer, ()))
            units = {_unit(file): file for file in files if below(output, "scores", file.uri).startswith("scorer=")}
            reasons = superseded_units(storage, output, scorer, units, named, old)
            yield from (Garbage(units[unit], why) for unit, why in reasons.items())


def _by_scorer(output: str, files: Iterable[StoredFile]) -> dict[str, list[StoredFile]]:
    """Files of scores and of their index, by scorer; files of other kinds are left out."""
    held: dict[str, list[StoredFile]] = {}
    for file in files:
        match = _OF_SCORER.fullmatch(below(output, "", file.uri))
        if match:
            held.setdefault(match[1], []).append(file)
    return held


def _unit(file: StoredFile) -> str:
    return file.uri.rpartition("/")[2].removesuffix(".parquet")


def _stale_index(
    storage: Storage, output: str, files: Sequence[StoredFile], tables: Mapping[str, str], old: float
) -> Iterator[Garbage]:
    """The index of table files that are not there any more, or not in that version."""
    present = {index_key(info) for address in tables.values() for info in storage.list_parquet(address)}
    for file in files:
        index = _INDEX.fullmatch(below(output, "index", file.uri))
        if index and index[1] not in present and file.written < old:
            yield Garbage(file, "stale index")


def describe(output: str, garbage: Iterable[Garbage]) -> Iterator[str]:
    """One line for each reason and folder: what it is, where, how many files, how many bytes."""
    totals: dict[tuple[str, str], tuple[int, int]] = {}
    for item in garbage:
        where = "/".join(item.file.uri.removeprefix(output).strip("/").split("/")[:2])
        files, size = totals.get((item.why, where), (0, 0))
        totals[item.why, where] = files + 1, size + item.file.size
    for (why, where), (files, size) in sorted(totals.items()):
        yield f"{why:<17} {redacted(where)}: {files} file{'s' if files > 1 else ''}, {size:,} bytes"
