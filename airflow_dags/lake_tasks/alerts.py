"""Alerts about tasks that failed finally: a message in the log and, where a connection is configured, to a webhook."""

from __future__ import annotations

import json
import logging
from typing import Any
from urllib.request import Request, urlopen

from airflow.sdk import BaseHook

from lake_tasks.summaries import failed_audits, last_json_line, read_summary

logger = logging.getLogger(__name__)

#: An HTTP connection whose host, or extra {"url": …}, is a webhook. Without it alerts go to the log alone.
CONNECTION = "lakerank_alerts"
_TIMEOUT_S = 10


def alert(context: Any) -> None:
    """on_failure_callback: report the failed task and run, with the job's last JSON line and the failed audits."""
    message = alert_message(context)
    logger.error("lakerank: %s", json.dumps(message, ensure_ascii=False))
    try:
        _send(message)
    except Exception:  # an alert that cannot be sent must not hide the failure
        logger.exception("the alert could not be sent by connection %r", CONNECTION)


def alert_message(context: Any) -> dict[str, Any]:
    """`text`, which chat webhooks show, and the same in fields for programs."""
    ti = context["ti"]
    summary = _summary(context)
    audits = failed_audits(summary)
    why = f"failed audits: {', '.join(audits)}" if audits else str(context.get("exception") or "no exception is known")
    return {
        "text": f"{ti.dag_id}.{ti.task_id} ({ti.run_id}) failed: {why.splitlines()[0]}",
        "dag_id": ti.dag_id,
        "task_id": ti.task_id,
        "dag_run_id": ti.run_id,
        "try_number": ti.try_number,
        "log_url": getattr(ti, "log_url", None),
        "failed_audits": audits,
        "summary": summary,
    }


def _summary(context: Any) -> dict[str, Any] | None:
    """The job's last line: from its file, else from the end of spark-submit's output, which the exception quotes."""
    try:
        summary = read_summary(context["task"].summary_address(context))
    except Exception:  # after the loss of a worker the callback runs elsewhere, without the whole task
        summary = None
    return summary or last_json_line(str(context.get("exception") or ""))


def _send(message: dict[str, Any]) -> None:
    try:
        connection = BaseHook.get_connection(CONNECTION)
    except Exception:
        logger.info("no connection %r: the alert is in this log alone", CONNECTION)
        return
    url = connection.extra_dejson.get("url") or connection.get_uri()
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"connection {CONNECTION!r}: expected an http or https URL")
    body = json.dumps(message, ensure_ascii=False).encode()
    request = Request(url, data=body, headers={"Content-Type": "application/json"})  # noqa: S310 - checked above
    with urlopen(request, timeout=_TIMEOUT_S):  # noqa: S310
        pass
