"""A job's last JSON line: where it is written, and what it means to a scheduler."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from airflow.sdk import ObjectStoragePath


def summary_address(folder: str, run_id: str, ti: Any) -> str:
    """A name for this try alone, so that an earlier try's summary is never taken for this one's."""
    task = ti.task_id if ti.map_index < 0 else f"{ti.task_id}-{ti.map_index}"
    return f"{folder.rstrip('/')}/{run_id}/{task}.{ti.try_number}.{ti.id}.json"


def read_summary(address: str) -> dict[str, Any] | None:
    """The summary at an address; None when there is none, as after a kill, or when it cannot be read from here."""
    try:
        return last_json_line(ObjectStoragePath(address).read_text())
    except Exception:  # a fault of this file or its store must not hide the job's own outcome
        return None


def last_json_line(text: str) -> dict[str, Any] | None:
    """The last line of a text that is a JSON object."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            try:
                value = json.loads(line)
            except ValueError:
                continue
            return value if isinstance(value, dict) else None
    return None


def failed_audits(summary: Mapping[str, Any] | None) -> list[str]:
    """Names of the audits that kept a run from being published."""
    return list((summary or {}).get("failed_audits") or []) if not (summary or {}).get("published") else []


def final_fault(summary: Mapping[str, Any]) -> str | None:
    """Why a retry would fail again: a failed audit, or a wrong config. None if it may succeed."""
    if audits := failed_audits(summary):
        return f"not published, an audit failed: {', '.join(audits)}. The last line has the figures: {dict(summary)}"
    if summary.get("error") == "ConfigError":
        return f"wrong arguments or config: {summary.get('message')}"
    return None
