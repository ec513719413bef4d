"""Log lines that say what they are about: the run, the stage and the unit at hand, named by where the code is."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

LogFormat = Literal["text", "json"]

TEXT = "%(asctime)s %(levelname)-7s %(message)s"


@dataclass(frozen=True, slots=True)
class LogContext:
    """How this process logs, and what about. It crosses to a worker, whose lines then say the same."""

    form: LogFormat = "text"
    about: Mapping[str, str] = field(default_factory=dict)


class _Process:
    """One job a process, and one task at a time in a worker: its threads log about the same thing."""

    context = LogContext()
    started = False


class JsonLines(logging.Formatter):
    """A JSON object a line: time in UTC, level, logger, message, what it is about, and an error's traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end; a line end within a message is escaped."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        line |= _Process.context.about
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def start_logging(form: LogFormat, verbose: bool = False) -> None:
    """Log to standard error from now on: ours from INFO, libraries' from WARNING; with `verbose` one level more."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else logging.Formatter(TEXT, "%H:%M:%S"))
    logging.basicConfig(handlers=[handler], level=logging.INFO if verbose else logging.WARNING)
    logging.getLogger("lakerank").setLevel(logging.DEBUG if verbose else logging.INFO)
    _Process.context = LogContext(form, _Process.context.about)
    _Process.started = True


@contextmanager
def about(**names: str) -> Iterator[None]:
    """Lines logged within are about these too: `about(run="r1", stage="plan")`."""
    outer = _Process.context
    _Process.context = LogContext(outer.form, {**outer.about, **names})
    try:
        yield
    finally:
        _Process.context = outer


def log_context() -> LogContext:
    """What the lines of this process are about now, for workers to go on with."""
    return _Process.context


@contextmanager
def in_worker(context: LogContext, **names: str) -> Iterator[None]:
    """Log as the driver does, about the same and these. Where it logs as text, workers tell of faults alone."""
    if context.form == "json" and not _Process.started:
        start_logging(context.form)
    with about(**context.about, **names):
        yield
