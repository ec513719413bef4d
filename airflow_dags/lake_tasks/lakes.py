"""Where the settings of lakes stand: a file, for one lake or several, or else the Variable `lakerank`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow.sdk import Variable
from airflow.sdk.exceptions import AirflowRuntimeError

from lake_tasks.settings import Settings

VARIABLE = "lakerank"
#: Names the file of settings. Without it, `lakes.yaml` beside the DAG files, if it is there.
ENVIRONMENT = "LAKERANK_LAKES"
BESIDE = Path(__file__).resolve().parents[1] / "lakes.yaml"

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")


def read_lakes() -> list[Settings]:
    """The settings of each lake. They include schedules, so they are read when DAG files are parsed.

    Raises:
        ValueError: there are none, or some are wrong: all faults of all lakes, and where they stand.
    """
    file = os.environ.get(ENVIRONMENT)
    if file or BESIDE.exists():
        source = file or str(BESIDE)
        return lakes_of(_read_file(source), source)
    return lakes_of(_read_variable(), f"Variable {VARIABLE!r}")


def lakes_of(given: Any, source: str) -> list[Settings]:
    """The lakes of `{"lakes": {name: settings}, "defaults": settings}`, or the one lake of plain settings.

    Raises:
        ValueError: as `read_lakes`.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"{source}: expected an object of settings; see docs/airflow.md")
    if "lakes" not in given:
        lakes, faults = {None: dict(given)}, []
    else:
        lakes, faults = _named(given)
    result = []
    for name, settings in lakes.items():
        lake, wrong = Settings.of(settings, name)
        faults += [f"lakes.{name}.{fault}" if name else fault for fault in wrong]
        result.append(lake)
    if faults:
        raise ValueError(f"{source}: {'; '.join(sorted(faults))}; see docs/airflow.md")
    return result


def _named(given: Mapping[str, Any]) -> tuple[dict[str | None, dict[str, Any]], list[str]]:
    """Settings by lake, defaults filled in; and faults."""
    lakes, defaults = given["lakes"], given.get("defaults") or {}
    faults = [f"{key}: no such setting beside `lakes`" for key in given if key not in ("lakes", "defaults")]
    if not isinstance(lakes, Mapping) or not lakes or not isinstance(defaults, Mapping):
        return {}, [*faults, "lakes: expected names, each with its settings, and defaults as an object"]
    faults += [
        f"lakes.{name}: a name has 1 to 64 of a-z, 0-9, _ and -, a letter first"
        for name in lakes
        if not _NAME.fullmatch(str(name))
    ]
    faults += [f"lakes.{name}: expected an object" for name, lake in lakes.items() if not isinstance(lake, Mapping)]
    return {str(n): {**defaults, **lake} for n, lake in lakes.items() if isinstance(lake, Mapping)}, faults


def _read_file(name: str) -> Any:
    from airflow.utils import yaml

    try:
        return yaml.safe_load(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{name}: cannot be read: {error}; see docs/airflow.md") from error


def _read_variable() -> Any:
    """The Variable's value, wherever Airflow keeps it.

    Where a command such as `airflow dags test` parses DAG files, the SDK looks into the environment and secrets
    backends alone: there the metadata database, which commands reach, is asked as well.
    """
    try:
        return Variable.get(VARIABLE, deserialize_json=True)
    except ValueError as error:
        raise ValueError(f"Variable {VARIABLE!r}: not JSON: {error}; see docs/airflow.md") from error
    except AirflowRuntimeError as error:
        if not _supervised():
            from airflow.models.variable import Variable as StoredVariable

            try:
                return StoredVariable.get(VARIABLE, deserialize_json=True)
            except KeyError:
                pass
        raise ValueError(
            f"no settings: there is no Variable {VARIABLE!r} and no file {BESIDE}, and {ENVIRONMENT} names none; "
            f"see docs/airflow.md ({error})"
        ) from error


def _supervised() -> bool:
    """Whether this is a task's or the DAG processor's process, which reach the database through Airflow's API alone."""
    from airflow.sdk.execution_time import task_runner

    return getattr(task_runner, "SUPERVISOR_COMMS", None) is not None
