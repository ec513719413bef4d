"""Progress of scoring, read from the unit files in the lake: right after a retry, a restart or a second driver.

Pairs of units that this machine is scoring count too, so that a bar moves within a unit.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import TypeVar

from tqdm import tqdm

from lakerank.errors import StorageError
from lakerank.lake.scores import PlannedUnits, finished_units
from lakerank.lake.storage import Storage
from lakerank.logs import duration, rate

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Listing may take a twentieth of the time: a listing of a million files is a thousand requests.
_LISTING_SHARE = 20


@dataclass(frozen=True, slots=True)
class UnitProgress:
    """How many pairs of a unit have been scored, as the length of a file in a folder of this machine. Tasks of other
    machines, which have no such folder, leave none."""

    folder: str

    def counted(self, unit: str, results: Iterable[T], every_s: float = 1) -> Iterator[T]:
        """The results of a unit's pairs, as they come."""
        file = Path(self.folder) / unit if Path(self.folder).is_dir() else None
        last = time.monotonic()
        for number, result in enumerate(results, start=1):
            yield result
            if file is not None and time.monotonic() - last >= every_s:
                last = time.monotonic()
                with suppress(OSError), file.open("ab") as counter:  # no job fails for a bar
                    counter.truncate(number)

    def pairs(self, planned: Mapping[str, int], finished: Set[str]) -> int:
        """Pairs scored of units that are not finished."""
        sizes = ((file.name, file.stat().st_size) for file in Path(self.folder).iterdir())
        return sum(size for unit, size in sizes if unit in planned and unit not in finished)


def progress_line(units: tuple[int, int], pairs: tuple[int, int], new_pairs: int, seconds: float) -> str:
    """Units and pairs that have scores, of how many; the pace of so many new pairs in so many seconds, and the seconds
    that the others take at it."""
    line = f"scoring: {units[0]} of {units[1]} units, {pairs[0]} of {pairs[1]} pairs"
    if not new_pairs:
        return line
    left = duration((pairs[1] - pairs[0]) * seconds / new_pairs)
    return f"{line}, {rate(new_pairs, seconds, 'pairs')}, about {left} left"


@contextmanager
def watch_units(
    storage: Storage, output: str, scorer: str, units: PlannedUnits, listing_s: float = 2, line_s: float = 10
) -> Iterator[UnitProgress]:
    """Show progress while the body runs: a bar on a terminal, lines of the log every `line_s` elsewhere.

    The lake is listed every `listing_s`, less often where that takes long. Tasks count their pairs by what this yields.
    """
    stop = Event()
    folder = TemporaryDirectory(prefix="lakerank-progress-", ignore_cleanup_errors=True)
    within = UnitProgress(folder.name)

    def watch() -> None:
        try:
            rows = units.table()
            pairs = dict(zip(rows["unit"].to_pylist(), rows["pairs"].to_pylist(), strict=True))
            _show(lambda: finished_units(storage, output, scorer), within, pairs, stop, (listing_s, line_s))
        except (StorageError, OSError) as error:  # no job fails for a bar: the tasks will report the fault
            logger.debug("no progress is shown: %s", error)

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield within
    finally:
        stop.set()
        watcher.join(timeout=10)
        folder.cleanup()


def _show(
    finished: Callable[[], set[str]],
    within: UnitProgress,
    pairs: Mapping[str, int],
    stop: Event,
    every_s: tuple[float, float],
) -> None:
    """Show progress until `stop`: `every_s` of two, the lake is listed and a line of the log written."""
    started = last_line = time.monotonic()
    total, first, quiet, count = sum(pairs.values()), None, not sys.stderr.isatty(), 0
    units: set[str] = set()
    listing_due = started
    with tqdm(total=total, desc="scoring", unit="pair", unit_scale=True, disable=quiet, leave=False) as bar:
        while True:
            now = time.monotonic()
            if now >= listing_due:
                units = finished() & pairs.keys()
                listing_due = now + max(every_s[0], _LISTING_SHARE * (time.monotonic() - now))
            done = sum(pairs[unit] for unit in units)
            if first is None:
                first = count = bar.initial = done  # the bar's pace leaves out what an earlier attempt scored
            count = max(count, done + within.pairs(pairs, units))
            bar.set_postfix_str(f"{len(units)} of {len(pairs)} units", refresh=False)
            bar.update(count - bar.n)
            if bar.disable and now - last_line >= every_s[1]:
                last_line = now
                line = progress_line((len(units), len(pairs)), (count, total), count - first, now - started)
                logger.info("%s", line)
            if stop.wait(every_s[0]):
                return
