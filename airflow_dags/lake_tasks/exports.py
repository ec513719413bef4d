"""The exports that follow a published run, as command lines of jobs/export.py, and where they are loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from airflow.sdk.exceptions import AirflowFailException

#: As `since`: whatever run the same format was last exported from.
LAST = "last"

#: What an export can be loaded into: the formats that it takes, and the keys of `load` beside `into`.
TARGETS = {
    "postgres": (("csv",), {"conn_id", "table"}),
    "opensearch": (("opensearch-lists", "opensearch-documents"), {"conn_id", "index"}),
}


def export_faults(export: Any) -> list[str]:
    """What is wrong with one of `exports`, beside the options that jobs/export.py checks itself."""
    if not isinstance(export, Mapping) or not {"format", "to"} <= export.keys():
        return ["expected objects with format, to and other options of jobs/export.py"]
    load, form = export.get("load"), export["format"]
    if load is None:
        return []
    if not isinstance(load, Mapping) or load.get("into") not in TARGETS:
        return [f"load: expected an object with into: {' or '.join(TARGETS)}"]
    formats, keys = TARGETS[load["into"]]
    faults = [] if form in formats else [f"load: into {load['into']} goes {' or '.join(formats)}, not {form}"]
    if load.keys() != keys | {"into"} or not all(isinstance(value, str) for value in load.values()):
        faults.append(f"load: into {load['into']} takes strings for {', '.join(sorted(keys))}")
    if load["into"] == "opensearch" and export.get("name"):
        faults.append("name: the index is load's; leave name out")
    return faults


def choose(exports: Iterable[Any], run_id: str, exported: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """The options of each export of a run, as `export_arguments` gives them.

    Raises:
        AirflowFailException: everything that is wrong with them.
    """
    if faults := [fault for export in exports for fault in export_faults(export)]:
        raise AirflowFailException(f"exports: {'; '.join(faults)}; see docs/airflow.md")
    past = list(exported)
    return [export_arguments(export, run_id, past) for export in exports]


def option_words(options: Mapping[str, Any]) -> list[str]:
    """Options as a command line: true gives the bare option, false and null nothing, an array one for each value."""
    words: list[str] = []
    for name, value in options.items():
        for item in value if isinstance(value, list) else [value]:
            if item is not None and item is not False:
                words += [f"--{name}"] if item is True else [f"--{name}", str(item)]
    return words


def export_arguments(export: Mapping[str, Any], run_id: str, exported: Iterable[Mapping[str, Any]]) -> list[str]:
    """Options of one export, with placeholders for a run's id.

    Args:
        export: option names and values; `since: last` is replaced by the run of this format's last export, and left
            out where there was none, which exports the whole run.
        run_id: the run to export. Exports after its own first one are ignored, so that repeating it gives the same.
        exported: the summaries of past exports, oldest first.
    """
    options = {name: value for name, value in export.items() if name != "load"}
    if options.get("since") == LAST:
        options["since"] = last_exported(exported, str(options.get("format")), run_id)
    return option_words(options)


def last_exported(exported: Iterable[Mapping[str, Any]], form: str, run_id: str) -> str | None:
    """The run that a format was last exported from before `run_id`."""
    last = None
    for summary in exported:
        if summary.get("format") == form:
            if summary.get("run_id") == run_id:
                break
            last = str(summary["run_id"])
    return last
