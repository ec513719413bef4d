"""Logging with context: every line can carry the run, the stage and the unit that it is about."""

from __future__ import annotations

import faulthandler
import json
import logging
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from lakerank.credentials import redacted

LogFormat = Literal["text", "json"]

#: This package and those beside it, whose loggers are not below its own.
PACKAGES = ("lakerank", "lakerank_benchmark", "lakerank_datasets", "lakerank_evaluation", "lakerank_training")

TEXT = "%(asctime)s %(levelname)-7s %(message)s"


@dataclass(frozen=True, slots=True)
class LogContext:
    """Log format and context of a process. Sent to workers, whose lines then carry the same."""

    form: LogFormat = "text"
    about: Mapping[str, str] = field(default_factory=dict)


class _Process:
    """A process runs one job, and a worker process one task at a time: their threads share a context."""

    context = LogContext()
    started = False


class _Thread(threading.local):
    """A thread that scores beside others has a context of its own."""

    context: LogContext | None = None


_thread = _Thread()


class TextLines(logging.Formatter):
    """Plain lines, without credentials."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and an error's traceback below it."""
        return redacted(super().format(record))


class JsonLines(logging.Formatter):
    """A JSON object a line: time in UTC, level, logger, message, context, and an error's traceback; no credentials."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without a newline; newlines within a message are escaped."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        line |= log_context().about
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps({key: redacted(value) for key, value in line.items()}, ensure_ascii=False)


def start_logging(form: LogFormat, verbose: bool = False) -> None:
    """Log to standard error: PACKAGES from INFO, libraries from WARNING; one level lower with `verbose`."""
    with suppress(ValueError, OSError):  # standard error is no file where a test or a notebook replaced it
        if not faulthandler.is_enabled():
            faulthandler.enable()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines(TEXT, "%H:%M:%S"))
    logging.basicConfig(handlers=[handler], level=logging.INFO if verbose else logging.WARNING)
    for package in PACKAGES:
        logging.getLogger(package).setLevel(logging.DEBUG if verbose else logging.INFO)
    _Process.context = LogContext(form, _Process.context.about)
    _Process.started = True


@contextmanager
def about(**names: str) -> Iterator[None]:
    """Add to the context of lines logged within the block: `about(run="r1", stage="plan")`."""
    holder = _Process if _thread.context is None else _thread
    outer = log_context()
    holder.context = LogContext(outer.form, {**outer.about, **names})
    try:
        yield
    finally:
        holder.context = outer


@contextmanager
def own_context() -> Iterator[None]:
    """This thread's context is its own within the block: it begins with the process's."""
    _thread.context = _Process.context
    try:
        yield
    finally:
        _thread.context = None


def log_context() -> LogContext:
    """The present context, to be sent to workers."""
    return _thread.context or _Process.context


@contextmanager
def in_worker(context: LogContext, **names: str) -> Iterator[None]:
    """Log in the driver's format, with its context and `names`. In the text format workers log only warnings."""
    if context.form == "json" and not _Process.started:
        start_logging(context.form)
    elif logging.lastResort is not None:
        logging.lastResort.setFormatter(TextLines())
    with about(**context.about, **names):
        yield


def scaled(value: float, unit: str) -> str:
    """A number in the unit that fits: 0.0031 TFLOP is "3.1 GFLOP" of 3.1e9 FLOP, 180 B stay "180 B"."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if abs(value) < 999.5 or prefix == "P":
            break
        value /= 1000
    return f"{value:.3g} {prefix}{unit}" if prefix else f"{value:.0f} {unit}"


def duration(seconds: float) -> str:
    """Seconds in the unit that fits: "40 s", "12 min", "3.4 h"."""
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def rate(count: float, seconds: float, unit: str) -> str:
    """How many a second; a minute, where that is less than one."""
    pace = count / seconds if seconds > 0 else 0.0
    if pace < 1:
        return f"{pace * 60:.2g} {unit}/min"
    return f"{pace:,.0f} {unit}/s" if pace >= 10 else f"{pace:.1f} {unit}/s"
