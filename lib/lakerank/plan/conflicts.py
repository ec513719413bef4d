"""A run id keeps to what it was planned and published with: the settings that differ now, by name and value."""

from __future__ import annotations

import logging
import os.path
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lakerank.credentials import redacted, without_credentials
from lakerank.errors import ConfigError, RunConflictError
from lakerank.lake import absolute, is_local
from lakerank.lake.runs import RunPaths, read_config
from lakerank.lake.storage import Storage
from lakerank.settings import parse_settings

logger = logging.getLogger(__name__)

TABLES = ("lake.documents", "lake.queries", "lake.candidates")

#: Settings whose values are places.
_PLACES = (*TABLES, "lake.qrels", "audit.golden_pairs", "audit.golden_qrels")

#: What a plan and its scores come from, and what a published run's lists do beside those.
_OF_PLAN = (*TABLES, "lake.columns", "model", "scoring", "duplicates", "ranking.duplicates", "spark.rows_per_file")
_OF_LISTS = (*TABLES, "lake.columns", "ranking", "duplicates", "audit.golden_pairs", "audit.golden_qrels")

#: Settings of those sections that change no result.
_HOW = ("device", "host_threads", "device_threads", "calibration", "unit_deadline_s", "keep_states")


def check_settings(storage: Storage, paths: RunPaths, config_yaml: str, published: bool = False) -> None:
    """Check that a run that has a config keeps to its tables, and where it is published to its ranking too.

    Raises:
        RunConflictError: names the settings that differ, with both values.
    """
    differences = _differences(storage, paths, config_yaml)
    of_lists = _within(differences, _OF_LISTS if published else TABLES)
    if of_lists:
        state = "published" if published else "planned"
        raise RunConflictError(
            f"{paths.folder}: run {paths.run_id!r} was {state} with other settings: {_words(of_lists)}; use another "
            "--run-id, or the config in the run's folder"
        )
    if published and (bounds := _within(differences, ("audit",))):
        logger.warning("run %s is not audited again by other bounds: %s", paths.run_id, _words(bounds))


@contextmanager
def naming_differences(storage: Storage, paths: RunPaths, config_yaml: str) -> Iterator[None]:
    """Name the settings that differ from those in a run's folder in a conflict that is raised inside."""
    try:
        yield
    except RunConflictError as error:
        differences = _within(_differences(storage, paths, config_yaml), _OF_PLAN)
        differences = {name: values for name, values in differences.items() if name.rpartition(".")[2] not in _HOW}
        if not differences:
            raise
        raise RunConflictError(f"{error} ({_words(differences)})") from error


def changed_settings(
    before: Mapping[str, Any], now: Mapping[str, Any], complete: bool = False
) -> dict[str, tuple[Any, Any]]:
    """The settings, as section.key, that two configs have and that differ: (before, now).

    A local path is taken from the folder that this process runs in. Of `complete` configs a setting that only one has
    differs too; a config of an earlier version has not all of them.
    """
    old, new = flat(before), flat(now)
    names = [*old, *(name for name in new if name not in old)] if complete else [name for name in old if name in new]
    pairs = {name: (old.get(name), new.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if _comparable(name, pair[0]) != _comparable(name, pair[1])}


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names. Of a list of sections, a cascade's, each section has a number."""
    if isinstance(settings, list) and any(isinstance(entry, dict) for entry in settings):
        settings = dict(enumerate(settings))
    if not isinstance(settings, Mapping) or prefix.startswith("lake.columns."):  # an empty one is a value too
        return {prefix: settings}
    pairs = [flat(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in settings.items()]
    return {name: value for pair in pairs for name, value in pair.items()}


def _comparable(name: str, value: Any) -> Any:
    if isinstance(value, str):
        value = without_credentials(value)  # runs of earlier versions have kept them
    if name in _PLACES and isinstance(value, str):
        return os.path.normpath(absolute(value)) if is_local(value) else value
    return list(value) if isinstance(value, tuple) else value


def _differences(storage: Storage, paths: RunPaths, config_yaml: str) -> dict[str, tuple[Any, Any]]:
    """The settings that differ from those in the run's folder; none where it has no config."""
    stored = read_config(storage, paths)
    if stored is None:
        return {}
    try:
        return changed_settings(parse_settings(stored, paths.config), parse_settings(config_yaml.encode(), "config"))
    except ConfigError as error:
        raise RunConflictError(f"{error}; use another --run-id") from error


def _within(differences: Mapping[str, tuple[Any, Any]], sections: tuple[str, ...]) -> dict[str, tuple[Any, Any]]:
    prefixes = tuple(f"{section}." for section in sections)
    return {name: values for name, values in differences.items() if f"{name}.".startswith(prefixes)}


def _words(differences: Mapping[str, tuple[Any, Any]]) -> str:
    def shown(value: Any) -> Any:
        return redacted(value) if isinstance(value, str) else "null" if value is None else value

    return ", ".join(f"{name} was {shown(old)}, is {shown(new)} now" for name, (old, new) in differences.items())
