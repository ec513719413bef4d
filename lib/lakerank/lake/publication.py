"""The published run: the pointer to it, the order of publications, and lists set aside because their audit failed.

Publications are numbered, and the pointer moves to higher numbers only. No clock has a say: a number is taken by
creating a file of that name, which of any number of writers one does.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from lakerank.credentials import redacted
from lakerank.errors import RunNotFoundError, StorageError
from lakerank.lake.checksums import CorruptFile, damage, json_bytes
from lakerank.lake.formats.output import OutputTable, RunRows, write_rows
from lakerank.lake.runs import RunPaths, check_run_id, read_json, read_manifest, write_manifest
from lakerank.lake.storage import Storage, join

logger = logging.getLogger(__name__)

#: The folder of an output folder in which a file stands for each publication, named by its number.
PUBLICATIONS = "publications"

#: The word for the run that is published now, where a run id is asked for.
CURRENT = "current"

#: Each failed try means that another run was published in between.
_POINTER_TRIES = 50

#: Files of lists that are set aside at once, and run ids that an error names.
_THREADS = 8
_SHOWN_RUNS = 10
_NUMBER = re.compile(r"[0-9]+\.json")


@dataclass(frozen=True, slots=True)
class Publication:
    """What the pointer says of a run whose manifest is written: `current` is the run that readers see.

    Where that is another, it was published later, and is never displaced by an earlier one.
    """

    run_id: str
    current: str

    @property
    def published(self) -> bool:
        """Whether readers see the run."""
        return self.current == self.run_id


def settle(storage: Storage, paths: RunPaths, manifest: Mapping[str, Any]) -> tuple[dict[str, Any], Publication]:
    """Number and write the manifest unless the run has one, then move the pointer; returns the manifest in effect.

    Raises:
        StorageError: files that the manifest names are gone, because another driver of the run has set them aside.
    """
    written = read_manifest(storage, paths.output, paths.run_id)
    if written is None:
        _check_lists(storage, paths, manifest)
        numbered = {**manifest, "publication": _take_number(storage, paths)}
        if write_manifest(storage, paths, numbered):
            return numbered, publish(storage, paths)
    logger.warning("run %s was published by another driver meanwhile: its manifest is kept", paths.run_id)
    return read_manifest(storage, paths.output, paths.run_id) or dict(manifest), publish(storage, paths)


def publish(storage: Storage, paths: RunPaths) -> Publication:
    """Move the pointer to a run whose manifest is written, unless a later publication holds it.

    Publishing the same run again changes nothing. Of runs published at once the latest stays: the pointer is replaced
    only if it has not changed since it was compared.

    Raises:
        StorageError: the run has no manifest: the pointer moves last.
    """
    manifest = read_manifest(storage, paths.output, paths.run_id)
    if manifest is None:
        raise StorageError(
            f"{paths.manifest}: not there, so run {paths.run_id} is not complete; write the manifest first"
        )
    # Relative to the pointer's own folder, so that a lake may be copied elsewhere.
    pointer = {"run_id": paths.run_id, "manifest": join("runs", paths.run_id, "manifest.json")}
    pointer |= {name: manifest[name] for name in ("publication", "published_at") if name in manifest}
    for _ in range(_POINTER_TRIES):
        version = storage.version(paths.current)
        current = current_run(storage, paths.output)
        if current is not None and current["run_id"] != paths.run_id and _order(current) > _order(pointer):
            logger.warning(
                "run %s is complete, but run %s was published after it and stays current: the pointer is left as it is",
                paths.run_id, current["run_id"],
            )  # fmt: skip
            return Publication(paths.run_id, current["run_id"])
        # On one line: Spark, Athena and BigQuery read a JSON object a line.
        if current == pointer or storage.replace_if(paths.current, json_bytes(pointer, indent=None), version):
            return Publication(paths.run_id, paths.run_id)
    raise StorageError(f"{paths.current}: changed {_POINTER_TRIES} times while run {paths.run_id} was to be published")


def write_table(storage: Storage, paths: RunPaths, manifest: Mapping[str, Any], table: OutputTable) -> dict[str, Any]:
    """Commit the rows of a published run to a table, once: see `write_rows`.

    What is returned is kept in the run's folder: a table's history is not kept for ever.
    """
    address = join(paths.folder, "ranked_table.json")
    written = read_json(storage, address)
    if written is None or written["table"] != table.address:
        written = write_rows(storage, table, RunRows.of(paths.output, paths.ranked, manifest))
        storage.replace(address, json_bytes(written))
    return written


def set_aside(storage: Storage, paths: RunPaths) -> bool:
    """Move the ranked lists of a run whose audit failed out of `ranked/`, where only published runs belong.

    Returns:
        False where another driver has published the run: it keeps its lists.
    """
    names = storage.list_names(paths.ranked)

    def copy(source: str, target: str, name: str) -> None:
        storage.replace(join(target, name), storage.read_bytes(join(source, name)))

    with ThreadPoolExecutor(_THREADS, "set aside") as pool:
        list(pool.map(lambda name: copy(paths.ranked, paths.unpublished, name), names))
        if storage.exists(paths.manifest):
            return False
        list(pool.map(lambda name: storage.delete(join(paths.ranked, name)), names))
        if storage.exists(paths.manifest):
            list(pool.map(lambda name: copy(paths.unpublished, paths.ranked, name), names))
            return False
    storage.remove_empty_folders(join(paths.output, "ranked"))
    return True


def discard_unpublished(storage: Storage, paths: RunPaths) -> None:
    """Delete what an earlier, failed audit of a run that is now published has set aside."""
    for name in storage.list_names(paths.unpublished):
        storage.delete(join(paths.unpublished, name))


def lists_folder(storage: Storage, paths: RunPaths) -> str:
    """The folder of a run's lists: in `ranked/`, or where those of a run whose audit failed are set aside."""
    aside = not storage.exists(paths.manifest) and storage.exists(paths.unpublished)
    return paths.unpublished if aside else paths.ranked


def find_run(storage: Storage, output: str, run_id: str) -> str:
    """The id of a run that has ranked lists; `current` is the published one's.

    Raises:
        ConfigError: no run can have this id.
        RunNotFoundError: there is none; says which runs are published.
    """
    check_run_id(run_id)
    pointer = current_run(storage, output) if run_id == CURRENT else None
    if pointer is not None:
        return str(pointer["run_id"])
    paths = RunPaths(output, run_id)
    if run_id != CURRENT and any(map(storage.exists, (paths.manifest, paths.unpublished))):
        return run_id
    names = storage.list_names(join(output, "runs"))
    published = [name for name in names if storage.exists(RunPaths(output, name).manifest)]
    more = len(published) - _SHOWN_RUNS
    shown = ", ".join(published[:_SHOWN_RUNS]) + (f" and {more} more" if more > 0 else "")
    if run_id in names:
        missing = f"run {run_id!r} in {redacted(output)} has no ranked lists yet; run `lakerank rerank` to its end"
    else:
        missing = (
            f"no run {run_id!r} in {redacted(output)}" if run_id != CURRENT else f"no run in {redacted(output)} yet"
        )
    raise RunNotFoundError(f"{missing}; published: {shown or 'none'}")


def last_published(storage: Storage, output: str, most: int) -> list[str]:
    """The runs of the last publications, newest first; those of earlier versions, without a number, are left out."""
    folder = join(output, PUBLICATIONS)
    names = sorted(filter(_NUMBER.fullmatch, storage.list_names(folder)), key=lambda name: -int(name[:-5]))
    return [str((read_json(storage, join(folder, name)) or {}).get("run_id")) for name in names[:most]]


def run_before(storage: Storage, paths: RunPaths) -> str | None:
    """The published run that a run is compared with: the current one, or the one before it if that is the run itself,
    because another driver has published it."""
    current = current_run(storage, paths.output)
    if current is None or current["run_id"] != paths.run_id:
        return None if current is None else str(current["run_id"])
    manifest = read_manifest(storage, paths.output, paths.run_id) or {}
    return manifest.get("last_run")


def current_run(storage: Storage, output: str) -> dict[str, Any] | None:
    """The pointer to the published run: run_id, manifest (relative to the output), publication; None before any.

    Raises:
        CorruptFile: the file is not such a pointer.
    """
    uri = RunPaths(output, "").current
    pointer = read_json(storage, uri)
    try:
        if pointer is not None and isinstance(pointer["run_id"], str):
            publication_order(pointer)
        elif pointer is not None:
            raise TypeError("run_id is no string")
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFile(damage(uri, f"it names no run ({error})")) from error
    return pointer


def publication_order(published: Mapping[str, Any]) -> tuple[int, datetime]:
    """Sorts manifests and pointers by their publication. Those of earlier versions, without a number, come first, in
    the order of their time.
    """
    number = int(published.get("publication", 0))
    moment = published.get("published_at")
    return number, publication_time(moment) if moment and not number else datetime.min.replace(tzinfo=UTC)


def _order(pointer: Mapping[str, Any]) -> tuple[int, datetime, str]:
    """The run id decides between two of the same microsecond, of earlier versions."""
    return *publication_order(pointer), pointer["run_id"]


def _take_number(storage: Storage, paths: RunPaths) -> int:
    """The next publication number, which no other run has or gets."""
    folder = join(paths.output, PUBLICATIONS)
    taken = [int(name.removesuffix(".json")) for name in storage.list_names(folder) if _NUMBER.fullmatch(name)]
    current = current_run(storage, paths.output) or {}
    number = max([*taken, int(current.get("publication", 0))], default=0) + 1
    content = json_bytes({"run_id": paths.run_id}, indent=None)
    while not storage.create(publication_file(paths.output, number), content):
        number += 1
    return number


def publication_file(output: str, number: int) -> str:
    """The file that stands for a publication."""
    return join(output, PUBLICATIONS, f"{number:08d}.json")


def _check_lists(storage: Storage, paths: RunPaths, manifest: Mapping[str, Any]) -> None:
    there = set(storage.list_names(paths.ranked))
    gone = sorted({file["file"] for file in manifest["ranked_files"]} - there)
    if gone:
        raise StorageError(
            f"{paths.ranked}: {', '.join(gone[:3])} gone since it was written: another driver of run {paths.run_id} "
            "has set it aside because its audit failed; run the same command again, by one driver"
        )


def publication_time(published_at: str) -> datetime:
    """An ISO 8601 time; UTC when it names no zone."""
    moment = datetime.fromisoformat(published_at)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
