"""Bulk exports into OpenSearch or Elasticsearch: lists into an index a run behind an alias, updates into an index."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from airflow.providers.http.hooks.http import HttpHook
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from lake_tasks.load import ExportFiles, check_base

#: The key of an index's mapping metadata that names the run it has.
META = "lakerank_run"

_ALIAS = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")


class Cluster:
    """A cluster's REST interface, by an HTTP connection: user, password, TLS and retries are the connection's."""

    def __init__(self, conn_id: str) -> None:
        self.conn_id = conn_id

    def call(self, method: str, path: str, body: Any = None, missing: Any = None) -> Any:
        """The JSON answer of a request; `missing` where the answer is 404 and `missing` is not None.

        Args:
            body: an object for JSON; bytes as they are, for a bulk request.

        Raises:
            AirflowException: the answer is another error.
        """
        data = body if body is None or isinstance(body, bytes) else json.dumps(body)
        kind = "application/x-ndjson" if isinstance(body, bytes) else "application/json"
        hook = HttpHook(method=method, http_conn_id=self.conn_id)
        answer = hook.run(path, data, {"Content-Type": kind}, {"check_response": False})
        if answer.status_code == 404 and missing is not None:
            return missing
        if not answer.ok:
            raise AirflowException(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
        return answer.json()

    def bulk(self, index: str, parts: Iterable[bytes]) -> int:
        """Send bulk requests; returns the number of updates whose document the index does not have.

        Raises:
            AirflowException: a request or an item failed.
        """
        missing = 0
        for part in parts:
            answer = self.call("POST", f"{index}/_bulk", part)
            results = [(action, item) for entry in answer["items"] for action, item in entry.items()]
            failed = [item for action, item in results if item["status"] >= 300 and not _absent(action, item)]
            if failed:
                raise AirflowException(f"{len(failed)} of {len(results)} items failed, the first: {failed[0]}")
            missing += sum(action == "update" and _absent(action, item) for action, item in results)
        return missing


def _absent(action: str, item: Mapping[str, Any]) -> bool:
    """Whether an item failed only since there is nothing to update or to delete."""
    return action in ("update", "delete") and item["status"] == 404


def load_index(cluster: Cluster, files: ExportFiles, index: str) -> dict[str, Any]:
    """Load lists behind the alias `index`, or updates into the index `index`; returns what was loaded.

    A whole run of lists gets an index of its own, to which the alias moves at once when it is complete; then the older
    index is deleted. Changes go into the alias's index.

    Raises:
        AirflowException: the cluster refused something, or lists were lost on the way. The alias has not moved.
        AirflowFailException: changes since a run that the index does not have.
    """
    if not _ALIAS.fullmatch(index):
        raise AirflowFailException(f"index {index}: expected 1 to 100 of a-z, 0-9, . _ and -")
    loaded = {"index": index, "run_id": files.run_id, "since": files.since, "lists": files.total("lists")}
    if files.manifest["format"] == "opensearch-documents":
        return loaded | {"missing": cluster.bulk(index, files.parts())}
    if files.since is None:
        _load_run(cluster, files, index)
    else:
        _load_changes(cluster, files, index)
    return loaded


def _load_run(cluster: Cluster, files: ExportFiles, alias: str) -> None:
    current = list(cluster.call("GET", f"_alias/{alias}", missing={}))
    if current and _loaded(cluster, alias) == files.run_id:
        return
    index = f"{alias}-{quote(files.run_id.lower(), safe='')}"
    if index in current:  # it was this run's, and has got changes since
        index += "-again"
    cluster.call("DELETE", index, missing={})  # of a try that was cut short
    cluster.call("PUT", index, {"mappings": {"_meta": {META: files.run_id}}})
    try:
        _fill(cluster, files, index)
    except Exception:
        cluster.call("DELETE", index, missing={})  # nobody would: the next run has an index of its own
        raise
    moves = [{"remove": {"index": old, "alias": alias}} for old in current]
    cluster.call("POST", "_aliases", {"actions": [*moves, {"add": {"index": index, "alias": alias}}]})
    for old in current:
        cluster.call("DELETE", old, missing={})


def _fill(cluster: Cluster, files: ExportFiles, index: str) -> None:
    cluster.bulk(index, files.parts())
    cluster.call("POST", f"{index}/_refresh")
    count = cluster.call("GET", f"{index}/_count")["count"]
    if count != files.total("lists"):
        raise AirflowException(f"index {index}: {count} lists of {files.total('lists')} arrived")


def _load_changes(cluster: Cluster, files: ExportFiles, alias: str) -> None:
    check_base(files, _loaded(cluster, alias), f"alias {alias}")
    cluster.bulk(alias, files.parts())
    cluster.call("PUT", f"{alias}/_mapping", {"_meta": {META: files.run_id}})
    cluster.call("POST", f"{alias}/_refresh")


def _loaded(cluster: Cluster, alias: str) -> str | None:
    """The run that the alias's one index has."""
    mappings = cluster.call("GET", f"{alias}/_mapping", missing={})
    runs = [index["mappings"].get("_meta", {}).get(META) for index in mappings.values()]
    return runs[0] if len(runs) == 1 else None
