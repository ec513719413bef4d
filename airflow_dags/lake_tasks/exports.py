"""The exports that follow a published run, as command lines of jobs/export.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

#: As `since`: whatever run the same format was last exported from.
LAST = "last"


def export_arguments(export: Mapping[str, Any], run_id: str, exported: Iterable[Mapping[str, Any]]) -> list[str]:
    """Options of one export, a run's id still to be filled into them.

    Args:
        export: option names and values; `since: last` stands for the run of this format's last export, and for nothing
            where there was none, which exports the whole run.
        run_id: the run to export. What came after its own first export is not its past: a repeated one is the same.
        exported: the summaries of past exports, oldest first.
    """
    options = dict(export)
    if options.get("since") == LAST:
        options["since"] = last_exported(exported, str(options.get("format")), run_id)
    return [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]


def last_exported(exported: Iterable[Mapping[str, Any]], form: str, run_id: str) -> str | None:
    """The run that a format was exported from last, before `run_id` was."""
    last = None
    for summary in exported:
        if summary.get("format") == form:
            if summary.get("run_id") == run_id:
                break
            last = str(summary["run_id"])
    return last
