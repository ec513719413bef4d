"""How far scoring is, read from the unit files in the lake: true after a retry, a restart or a second driver."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from tqdm import tqdm

from lakerank.errors import StorageError
from lakerank.lake.scores import PlannedUnits, finished_units
from lakerank.lake.storage import Storage

logger = logging.getLogger(__name__)

#: Seconds between looks at the lake, and between lines where standard error is not a terminal.
LOOK_EVERY_S = 2.0
LINE_EVERY_S = 30.0

#: A look may take a twentieth of the time: a listing of a million files is a thousand requests.
_LOOKS_SHARE = 20


@dataclass(frozen=True, slots=True)
class Progress:
    """Units and pairs that have scores, of how many, and since when how many of the pairs."""

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
def watch_units(storage: Storage, output: str, scorer: str, units: PlannedUnits) -> Iterator[None]:
    """Show what is done while the body runs: a bar on a terminal, a log line every half minute elsewhere."""
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(storage, output, scorer, units, stop), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join(timeout=10)


def _watch(storage: Storage, output: str, scorer: str, units: PlannedUnits, stop: threading.Event) -> None:
    try:
        rows = units.table()
        pairs = dict(zip(rows["unit"].to_pylist(), rows["pairs"].to_pylist(), strict=True))
        _show(storage, output, scorer, pairs, stop)
    except StorageError as error:  # the bar is not worth failing a job for: the tasks will say what is wrong
        logger.debug("no progress is shown: %s", error)


def _show(storage: Storage, output: str, scorer: str, pairs: Mapping[str, int], stop: threading.Event) -> None:
    started = last_line = time.monotonic()
    total, first = sum(pairs.values()), None
    with tqdm(
        total=total, desc="scoring", unit="pair", unit_scale=True, disable=not sys.stderr.isatty(), leave=False
    ) as bar:
        while True:
            looked = time.monotonic()
            done = finished_units(storage, output, scorer) & pairs.keys()
            count = sum(pairs[unit] for unit in done)
            if first is None:
                first = bar.initial = count  # the bar's pace leaves out what an earlier attempt did
            now = time.monotonic()
            bar.set_postfix_str(f"{len(done)} of {len(pairs)} units", refresh=False)
            bar.update(count - bar.n)
            if bar.disable and now - last_line >= LINE_EVERY_S:
                last_line = now
                logger.info("%s", Progress(len(done), len(pairs), count, total, count - first, now - started))
            if stop.wait(max(LOOK_EVERY_S, _LOOKS_SHARE * (now - looked))):
                return


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{round(seconds)} s" if seconds < 120 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
