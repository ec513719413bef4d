"""Progress of scoring, read from the unit files in the lake: right after a retry, a restart or a second driver."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread

from tqdm import tqdm

from lakerank.errors import StorageError
from lakerank.lake.scores import PlannedUnits, finished_units
from lakerank.lake.storage import Storage

logger = logging.getLogger(__name__)

#: Listing may take a twentieth of the time: a listing of a million files is a thousand requests.
_LISTING_SHARE = 20


@dataclass(frozen=True, slots=True)
class Progress:
    """Units and pairs that have scores, of how many; the pairs scored since the watch began, and its seconds."""

    units: int
    all_units: int
    pairs: int
    all_pairs: int
    new_pairs: int
    seconds: float

    @property
    def pairs_per_second(self) -> float:
        """Pace since the watch began."""
        return self.new_pairs / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """At this pace; None while there is none."""
        return (self.all_pairs - self.pairs) / self.pairs_per_second if self.new_pairs else None

    def __str__(self) -> str:
        left = "" if self.seconds_left is None else f", about {_duration(self.seconds_left)} left"
        return (
            f"scoring: {self.units} of {self.all_units} units, {self.pairs} of {self.all_pairs} pairs, "
            f"{self.pairs_per_second:.1f} pairs/s{left}"
        )


@contextmanager
def watch_units(
    storage: Storage, output: str, scorer: str, units: PlannedUnits, list_every_s: float = 2, line_every_s: float = 30
) -> Iterator[None]:
    """Show progress while the body runs: a bar on a terminal, a log line every `line_every_s` seconds elsewhere.

    The lake is listed every `list_every_s` seconds, or less often where listings take long.
    """
    stop = Event()

    def watch() -> None:
        try:
            rows = units.table()
            pairs = dict(zip(rows["unit"].to_pylist(), rows["pairs"].to_pylist(), strict=True))
            _show(lambda: finished_units(storage, output, scorer), pairs, stop, list_every_s, line_every_s)
        except StorageError as error:  # the bar is not worth failing a job for: the tasks will report the fault
            logger.debug("no progress is shown: %s", error)

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join(timeout=10)


def _show(
    finished: Callable[[], set[str]], pairs: Mapping[str, int], stop: Event, list_every_s: float, line_every_s: float
) -> None:
    started = last_line = time.monotonic()
    total, first, quiet = sum(pairs.values()), None, not sys.stderr.isatty()
    with tqdm(total=total, desc="scoring", unit="pair", unit_scale=True, disable=quiet, leave=False) as bar:
        while True:
            listing = time.monotonic()
            units = finished() & pairs.keys()
            count = sum(pairs[unit] for unit in units)
            if first is None:
                first = bar.initial = count  # the bar's pace leaves out what an earlier attempt scored
            now = time.monotonic()
            bar.set_postfix_str(f"{len(units)} of {len(pairs)} units", refresh=False)
            bar.update(count - bar.n)
            if bar.disable and now - last_line >= line_every_s:
                last_line = now
                logger.info("%s", Progress(len(units), len(pairs), count, total, count - first, now - started))
            if stop.wait(max(list_every_s, _LISTING_SHARE * (now - listing))):
                return


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{round(seconds)} s" if seconds < 120 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
