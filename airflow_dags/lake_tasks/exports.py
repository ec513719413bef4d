"""The exports that follow a published run, as command lines of jobs/export.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

#: As `since`: whatever run the same format was last exported from.
LAST = "last"


def export_arguments(export: Mapping[str, Any], run_id: str, exported: Iterable[Mapping[str, Any]]) -> list[str]:
    """Options of one export, with placeholders for a run's id.

    Args:
        export: option names and values; `since: last` is replaced by the run of this format's last export, and left
            out where there was none, which exports the whole run.
        run_id: the run to export. Exports after its own first one are ignored, so that repeating it gives the same.
        exported: the summaries of past exports, oldest first.
    """
    options = dict(export)
    if options.get("since") == LAST:
        options["since"] = last_exported(exported, str(options.get("format")), run_id)
    return [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]


def last_exported(exported: Iterable[Mapping[str, Any]], form: str, run_id: str) -> str | None:
    """The run that a format was last exported from before `run_id`."""
    last = None
    for summary in exported:
        if summary.get("format") == form:
            if summary.get("run_id") == run_id:
                break
            last = str(summary["run_id"])
    return last
