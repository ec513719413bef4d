"""Cleaning and compaction: the files of an output folder that no kept run needs, listed and deleted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lakerank.credentials import redacted
from lakerank.lake.formats import resolve
from lakerank.lake.publication import PUBLICATIONS, current_run, publication_file, publication_order, publication_time
from lakerank.lake.runs import RunContents, RunPaths, planned_contents, published_contents, read_manifest
from lakerank.lake.scores import CorruptScoreFile, read_unit
from lakerank.lake.storage import PROBE_PREFIX, Storage, StoredFile, join
from lakerank.lake.tables import SHARED_INDEX, files_key, index_key, index_places
from lakerank.records import TRANSIENT_REASONS

#: The folders of an output folder that lakerank writes. Nothing else is ever looked at.
FOLDERS = ("runs", "ranked", "unpublished", "rejected", "explanations", "scores", "states", "index", PUBLICATIONS)

#: Folders that have one folder a run, and the prefix of its name.
_RUN_FOLDERS = (("runs", ""), *((n, "run_id=") for n in ("ranked", "unpublished", "rejected", "explanations")))

#: Files deleted between two checks for jobs that have started.
BATCH = 500

_THREADS = 16
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")
_ATTEMPT = re.compile(r"([^/]+)/plan/((?:pass-[0-9]+/)?)([0-9a-f]+)/.")
_OF_SCORER = re.compile(r"(?:(?:index/)?scores/scorer|states/encoder)=([^/]+)/[^./][^/]*\.parquet")
_INDEX = re.compile(rf"([a-z]+)/((?:[0-9a-f]+-\d+(?:-images)?|{SHARED_INDEX}[0-9a-f]+)\.parquet)")

#: (query_hash, doc_hash) of a scored pair.
PairHashes = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Retention:
    """Which runs to keep. Times are in seconds.

    Of the published runs: the current one, the `keep_runs` latest, and those younger than `keep_s`. An unpublished run
    that has written nothing for `grace_s` is abandoned; a younger one may be running.
    """

    keep_runs: int = 3
    keep_s: float = 0.0
    grace_s: float = 48 * 3600.0


@dataclass(frozen=True, slots=True)
class Deletion:
    """A file to delete, and why."""

    file: StoredFile
    why: str


@dataclass(frozen=True, slots=True)
class CleaningPlan:
    """The ids of all runs and of those kept, the files to delete, and the announced jobs when that was decided."""

    runs: tuple[str, ...]
    kept: tuple[str, ...]
    deletions: tuple[Deletion, ...]
    jobs: Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class _Lake:
    """An output folder: its files by top-level folder, and the contents of every run, kept or not.

    Of files last written before `oldest` no running job can be the writer.
    """

    storage: Storage
    output: str
    files: Mapping[str, Sequence[StoredFile]]
    oldest: float
    kept: dict[str, RunContents]
    expired: dict[str, RunContents]

    def relative(self, folder: str, file: StoredFile) -> str:
        """A file's path below one of the output's folders."""
        return file.uri.removeprefix(join(self.output, folder)).lstrip("/")

    def run_files(self) -> Iterator[tuple[str, StoredFile, str]]:
        """Top-level folder, file and run of every file in a run's folder."""
        for folder, prefix in _RUN_FOLDERS:
            for file in self.files[folder]:
                name, slash, _ = self.relative(folder, file).partition("/")
                if slash and name.startswith(prefix):
                    yield folder, file, name.removeprefix(prefix)


def plan_cleaning(
    storage: Storage,
    output: str,
    retention: Retention,
    scorers: Iterable[str] | None,
    tables: Mapping[str, str],
    now: float,
) -> CleaningPlan:
    """List what no kept run needs. Reads listings, manifests and plans; deletes nothing.

    Args:
        scorers: whose scores are kept beside those of the kept runs; None to keep every scorer's.
        tables: addresses of `documents` and `queries`, whose index is kept.
        now: Unix time.

    Raises:
        StorageError: something cannot be read, or a manifest or plan lacks what its run needs.
    """
    jobs = started_jobs(storage, output)
    files = {folder: storage.walk(join(output, folder)) for folder in FOLDERS}
    lake = _Lake(storage, output, files, now - retention.grace_s, {}, {})
    _read_runs(lake, retention, now)
    kept, expired = lake.kept, lake.expired
    deletions = [*_temporary_files(lake), *_files_of_runs(lake), *_old_numbers(lake), *_files_of_scorers(lake, scorers)]
    if all(run.published for run in kept.values()):  # a run under way may read the index of a file just replaced
        deletions += _stale_index(lake, tables)
    first_reasons = {deletion.file.uri: deletion for deletion in reversed(deletions)}
    ordered = tuple(first_reasons[uri] for uri in sorted(first_reasons))
    return CleaningPlan(tuple(sorted({*kept, *expired})), tuple(sorted(kept)), ordered, jobs)


def delete(storage: Storage, output: str, plan: CleaningPlan, deleted: Callable[[Deletion], None]) -> bool:
    """Delete a plan's files, manifests first, so that none names what is gone; calls `deleted` for each.

    Returns:
        False when a job has started since the plan: it may need what is left, so that is left alone.
    """
    manifests = {RunPaths(output, run_id).manifest for run_id in plan.runs}
    ordered = sorted(plan.deletions, key=lambda deletion: (deletion.file.uri not in manifests, deletion.file.uri))
    with ThreadPoolExecutor(_THREADS, "clean") as pool:
        for first in range(0, len(ordered), BATCH):
            if started_jobs(storage, output) != plan.jobs:
                return False
            batch = ordered[first : first + BATCH]
            uris = (deletion.file.uri for deletion in batch)
            for deletion, _ in zip(batch, pool.map(storage.delete, uris), strict=True):
                deleted(deletion)
    for folder in FOLDERS:
        storage.remove_empty_folders(join(output, folder))
    return True


def started_jobs(storage: Storage, output: str) -> dict[str, str | None]:
    """Version of each run's announcement: another one means that a job has started since."""
    names = storage.list_names(join(output, "runs"))
    return {name: storage.version(RunPaths(output, name).started) for name in names}


def describe(output: str, deletions: Iterable[Deletion]) -> Iterator[str]:
    """One line for each reason and folder: what it is, where, how many files, how many bytes."""
    sizes: dict[tuple[str, str], list[int]] = {}
    for deletion in deletions:
        where = "/".join(deletion.file.uri.removeprefix(output).strip("/").split("/")[:2])
        sizes.setdefault((deletion.why, where), []).append(deletion.file.size)
    for (why, where), files in sorted(sizes.items()):
        yield f"{why:<17} {redacted(where)}: {len(files)} file{'s' if len(files) > 1 else ''}, {sum(files):,} bytes"


def _read_runs(lake: _Lake, retention: Retention, now: float) -> None:
    """Every run that has left a file: those to keep, and the others."""
    storage, output = lake.storage, lake.output
    latest: dict[str, float] = {}  # when each run last wrote a file of its own
    for _, file, run_id in lake.run_files():
        latest[run_id] = max(latest.get(run_id, 0.0), file.written)
    manifests = {run_id: read_manifest(storage, output, run_id) for run_id in sorted(latest)}
    published = {run_id: manifest for run_id, manifest in manifests.items() if manifest is not None}
    retained = _retained(lake, published, retention, now)
    for run_id in manifests:
        if run_id in published:
            contents = published_contents(output, run_id, published[run_id])
            is_kept = run_id in retained
        else:
            contents = planned_contents(storage, output, run_id)
            units = (file.written for file in lake.files["scores"] if file.uri in contents.planned)
            is_kept = max([latest[run_id], *units]) > lake.oldest
        (lake.kept if is_kept else lake.expired)[run_id] = contents


def _retained(lake: _Lake, manifests: Mapping[str, Mapping[str, Any]], retention: Retention, now: float) -> set[str]:
    """Ids of the published runs to keep. Which are the latest, their order of publication says, not a clock."""
    latest = sorted(manifests, key=lambda run_id: (publication_order(manifests[run_id]), run_id), reverse=True)
    retained = set(latest[: retention.keep_runs])
    written = {file.uri: file.written for file in lake.files["runs"]}
    for run_id, manifest in manifests.items():
        # Not published after its manifest was written, however far ahead a driver's clock was.
        moment = publication_time(manifest["published_at"]).timestamp()
        if now - min(moment, written.get(RunPaths(lake.output, run_id).manifest, now)) < retention.keep_s:
            retained.add(run_id)
    current = current_run(lake.storage, lake.output)
    return retained | ({current["run_id"]} if current else set())


def _old_numbers(lake: _Lake) -> Iterator[Deletion]:
    """Publication numbers below the current one: a later number says that they are taken."""
    current = publication_order(current_run(lake.storage, lake.output) or {})[0]
    for file in lake.files[PUBLICATIONS]:
        if file.written < lake.oldest and file.uri < publication_file(lake.output, current):
            yield Deletion(file, "old number")


def _temporary_files(lake: _Lake) -> Iterator[Deletion]:
    for file in (file for files in lake.files.values() for file in files):
        name = file.uri.rpartition("/")[2]
        if file.written < lake.oldest and (_TEMPORARY.fullmatch(name) or name.startswith(PROBE_PREFIX)):
            yield Deletion(file, "temporary file")


def _files_of_runs(lake: _Lake) -> Iterator[Deletion]:
    """All files of expired runs; of kept ones those that their manifest or plan does not name."""
    for folder, file, run_id in lake.run_files():
        if file.uri.rpartition("/")[2].startswith("."):
            continue
        if run_id in lake.expired:
            yield Deletion(file, "old run" if lake.expired[run_id].published else "unfinished run")
        elif run_id in lake.kept and file.written < lake.oldest and _is_orphan(lake, folder, file, run_id):
            yield Deletion(file, "orphan")


def _is_orphan(lake: _Lake, folder: str, file: StoredFile, run_id: str) -> bool:
    run = lake.kept[run_id]
    if folder == "explanations":
        return False
    if folder != "runs":
        return run.published and file.uri not in run.ranked
    attempt = _ATTEMPT.match(lake.relative(folder, file))
    if attempt is None:
        return False
    valid = run.attempts.get(attempt[2])
    return run.published if valid is None else attempt[3] != valid


def _files_of_scorers(lake: _Lake, scorers: Iterable[str] | None) -> Iterator[Deletion]:
    """Scores, and their index, of scorers that are not kept; of kept ones the redundant and corrupt unit files."""
    unknown = any(run.scorers is None for run in lake.kept.values())
    used = {scorer for run in lake.kept.values() for scorer in run.scorers or ()}
    retained = None if scorers is None or unknown else {*scorers, *used}
    # A run under way may be about to name any of its scorers' files; one that has not named its scorers, any at all.
    running = [run for run in lake.kept.values() if not run.published]
    busy = {scorer for run in running for scorer in run.scorers or ()}
    all_busy = any(run.scorers is None for run in running)
    by_scorer: dict[str, list[StoredFile]] = {}
    for file in (*lake.files["scores"], *lake.files["states"], *lake.files["index"]):
        if match := _OF_SCORER.fullmatch(lake.relative("", file)):
            by_scorer.setdefault(match[1], []).append(file)
    for scorer, files in by_scorer.items():
        if retained is not None and scorer not in retained:
            yield from (Deletion(file, "old scorer") for file in files if file.written < lake.oldest)
        elif not all_busy and scorer not in busy:
            scores = [file for file in files if lake.relative("scores", file).startswith("scorer=")]
            units = {file.uri.rpartition("/")[2].removesuffix(".parquet"): file for file in scores}
            yield from _redundant_units(lake, scorer, units)


def _redundant_units(lake: _Lake, scorer: str, units: Mapping[str, StoredFile]) -> Iterator[Deletion]:
    """Old unit files that no kept run names and whose scores all are in other files, or that are corrupt.

    Of several such units with the same pair the first by name keeps it. Memory grows with the pairs of the units that
    no run names, not with the others.
    """

    pairs_of = partial(_lasting_pairs, lake, scorer)
    named = {unit for run in lake.kept.values() for unit in run.units.get(scorer, ())}
    unnamed = sorted(unit for unit, file in units.items() if unit not in named and file.written < lake.oldest)
    pairs = {unit: pairs_of(unit) for unit in unnamed}
    candidates = {pair for hashes in pairs.values() for pair in hashes or ()}
    others = [unit for unit in units if unit not in pairs] if candidates else []
    elsewhere: set[PairHashes] = set()
    with ThreadPoolExecutor(_THREADS, "compaction") as pool:
        elsewhere.update(*pool.map(lambda unit: (pairs_of(unit) or set()) & candidates, others))
    for unit, hashes in pairs.items():
        if hashes is None:
            yield Deletion(units[unit], "torn scores")
        elif hashes <= elsewhere:
            yield Deletion(units[unit], "superseded scores")
        else:
            elsewhere |= hashes


def _lasting_pairs(lake: _Lake, scorer: str, unit: str) -> set[PairHashes] | None:
    """The pairs of a unit whose results are not transient; None when its file is corrupt."""
    try:
        rows = read_unit(lake.storage, lake.output, scorer, unit)
    except CorruptScoreFile:
        return None
    transient = pc.is_in(rows["reason"], pa.array([reason.value for reason in TRANSIENT_REASONS]))
    lasting = rows.filter(pc.invert(transient)).select(["query_hash", "doc_hash"])
    return set(zip(*(column.to_pylist() for column in lasting.columns), strict=True))


def _stale_index(lake: _Lake, tables: Mapping[str, str]) -> Iterator[Deletion]:
    """The index of table files that are gone, or have another version; clusters of documents of other files."""
    keys = {name: {index_key(file) for file in resolve(lake.storage, at).files} for name, at in tables.items()}
    present, clusters = set().union(*keys.values()), f"clusters/{files_key(keys.get('documents', ()))}-"
    used: dict[str, set[str]] = {}
    for file in lake.files["index"]:
        name = lake.relative("index", file)
        index = _INDEX.fullmatch(name)
        if file.written < lake.oldest and name.startswith("clusters/") and not name.startswith(clusters):
            yield Deletion(file, "stale index")
        if index is None or file.written >= lake.oldest:
            continue
        if (table := index[1]) not in used:
            places = index_places(lake.storage, join(lake.output, "index", table))
            used[table] = {place.file for chunk, place in places.items() if chunk.partition("-")[0] in present}
        if index[2] not in used[table]:
            yield Deletion(file, "stale index")
