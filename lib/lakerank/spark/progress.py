"""How far scoring is, read from the unit files in the lake: true after a retry, a restart or a second driver."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tqdm import tqdm

from lakerank.errors import StorageError
from lakerank.lake.score_files import finished_units
from lakerank.lake.storage import Storage

logger = logging.getLogger(__name__)

#: Seconds between looks at the lake, and between lines where standard error is not a terminal.
LOOK_EVERY_S = 2.0
LINE_EVERY_S = 30.0


@contextmanager
def watch_units(storage: Storage, output: str, scorer: str, units: Sequence[str]) -> Iterator[None]:
    """Show units done while the body runs: a bar on a terminal, a log line every half minute elsewhere."""
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(storage, output, scorer, frozenset(units), stop), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join(timeout=10)


def _watch(storage: Storage, output: str, scorer: str, units: frozenset[str], stop: threading.Event) -> None:
    started = last_line = time.monotonic()
    with tqdm(total=len(units), desc="scoring", unit="unit", disable=not sys.stderr.isatty(), leave=False) as bar:
        first = None
        while True:
            done = _count(storage, output, scorer, units)
            first = done if first is None else first
            bar.update(done - bar.n)
            now = time.monotonic()
            if bar.disable and now - last_line >= LINE_EVERY_S:
                last_line = now
                pace = (done - first) / (now - started)
                left = f", about {(len(units) - done) / pace:.0f} s left" if pace else ""
                logger.info("scoring: %d of %d units%s", done, len(units), left)
            if stop.wait(LOOK_EVERY_S):
                return


def _count(storage: Storage, output: str, scorer: str, units: frozenset[str]) -> int:
    try:
        return len(units & finished_units(storage, output, scorer))
    except StorageError:  # the bar is not worth failing a job for: the tasks will say what is wrong
        return 0
