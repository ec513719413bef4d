"""SIGINT and SIGTERM as an exception, so that a job says what was done, and ends within seconds."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from types import FrameType
from typing import NoReturn

from lakerank.logs import log_context

SIGNALS = (signal.SIGINT, signal.SIGTERM)

#: Seconds that a job has to end by itself after a signal.
GRACE_S = 6.0


class Interrupted(BaseException):
    """A signal came. Not an Exception: no handler of failures may take it for one.

    `stage` is the stage that the job was in, "" for none.
    """

    def __init__(self, number: int, stage: str) -> None:
        super().__init__(signal.Signals(number).name)
        self.name, self.status, self.stage = signal.Signals(number).name, 128 + number, stage


class LastWords:
    """What is to be said once, by whoever is first: the job that ends, or the watch over one that does not."""

    def __init__(self, say: Callable[[Interrupted], None]) -> None:
        self._say, self._lock, self.said = say, threading.Lock(), False

    def __call__(self, interruption: Interrupted) -> None:
        """Say them, unless they have been said."""
        with self._lock:
            if not self.said:
                self.said = True
                self._say(interruption)


@contextmanager
def interruptible(last_words: LastWords) -> Iterator[None]:
    """Raise Interrupted in the block when a signal comes.

    A block that has not ended `GRACE_S` later, and a process that waits for its threads, are ended with the last words;
    a second signal does so at once. In another thread than the main one signals are left as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    first: list[Interrupted] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if first:
            _end(last_words, first[0])
        first.append(Interrupted(number, log_context().about.get("stage", "")))
        threading.Thread(target=_watch, args=(last_words, first[0]), daemon=True).start()
        raise first[0]

    _handlers.append(handle)
    take_signals()
    try:
        yield
    finally:
        _handlers.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


#: The handler of the running job.
_handlers: list[Callable[[int, FrameType | None], None]] = []


def take_signals() -> None:
    """Take the running job's signals, again where a library has set a handler of its own."""
    for number, handler in product(SIGNALS, _handlers):
        signal.signal(number, handler)


def _watch(last_words: LastWords, interruption: Interrupted) -> None:
    time.sleep(GRACE_S)
    if not last_words.said or not threading.main_thread().is_alive():
        _end(last_words, interruption)


def kill_children() -> None:
    """Kill the processes that this one started, and those that they started: Spark's JVM and its workers. Where there
    is no /proc, workers notice that their pipes are closed."""
    families = [_children("self")]
    while families[-1]:
        families.append([process for parent in families[-1] for process in _children(parent)])
    for process in (process for family in families for process in family):
        with suppress(OSError):
            os.kill(int(process), signal.SIGKILL)


def _children(process: str) -> list[str]:
    children: list[str] = []
    for tasks in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):
            children += tasks.read_text().split()
    return children


def _end(last_words: LastWords, interruption: Interrupted) -> None:
    last_words(interruption)
    end(interruption.status)


def end(status: int) -> NoReturn:
    """End the process now, whatever its threads wait for, and the processes that it started."""
    kill_children()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
