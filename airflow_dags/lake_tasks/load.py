"""Exports into the systems that serve them, from what their manifests name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from airflow.sdk import BaseOperator, ObjectStoragePath
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from lake_tasks.exports import export_faults


class ExportFiles:
    """A finished export: its manifest, and its files as they were written."""

    def __init__(self, to: str) -> None:
        """Raises OSError where there is no finished export."""
        self.folder = ObjectStoragePath(to)
        self.manifest: dict[str, Any] = json.loads((self.folder / "_manifest.json").read_text())

    @property
    def run_id(self) -> str:
        """The run that was exported."""
        return str(self.manifest["run_id"])

    @property
    def since(self) -> str | None:
        """The run that these are the changes since; None: all of the run."""
        return self.manifest["since"]

    def total(self, count: str) -> int:
        """A count of all parts, `rows` or `lists`."""
        return sum(int(part[count]) for part in self.manifest["parts"])

    def parts(self) -> Iterator[bytes]:
        """The contents of the parts, in their order.

        Raises:
            AirflowException: a file is not what the export wrote.
        """
        return map(self._read, self.manifest["parts"])

    def removed(self) -> Iterator[list[str]]:
        """Ids of lists that the run has no more, a file at once."""
        for file in self.manifest["removed"]:
            yield [value for line in self._read(file).splitlines() for value in json.loads(line).values()]

    def _read(self, file: Mapping[str, Any]) -> bytes:
        data = (self.folder / file["name"]).read_bytes()
        if hashlib.sha256(data).hexdigest() != file["sha256"]:
            raise AirflowException(f"{self.folder / file['name']}: not the bytes that the export wrote; export again")
        return data


def check_base(files: ExportFiles, loaded: str | None, where: str) -> None:
    """Changes can be loaded onto the run that they are since, or again onto the same run.

    Raises:
        AirflowFailException: another run is there.
    """
    if files.since is not None and loaded not in (files.since, files.run_id):
        raise AirflowFailException(
            f"{where} has {'run ' + loaded if loaded else 'no run'}, and this export is what changed in "
            f"{files.run_id} since {files.since}: export without `since` once, to load the whole run"
        )


class LoadExport(BaseOperator):
    """Load one of the run's exports where its `load` says; skipped without one, and where a later run is current.

    Args:
        export: the export's summary.
        publishing: the task whose summary says whether this run is current.
    """

    template_fields = ("export",)

    def __init__(self, *, export: Mapping[str, Any], publishing: str, **options: Any) -> None:
        super().__init__(**options)
        self.export = export
        self.publishing = publishing

    def execute(self, context: Any) -> dict[str, Any]:
        """Load; returns what was loaded."""
        requested = context["params"]["exports"][context["ti"].map_index]
        if not requested.get("load"):
            raise AirflowSkipException("this export is not loaded anywhere")
        if faults := export_faults(requested):
            raise AirflowFailException("; ".join(faults))
        publication = context["ti"].xcom_pull(task_ids=self.publishing) or {}
        if publication.get("superseded_by"):
            raise AirflowSkipException(f"run {publication['superseded_by']} was published later and is current")
        if "to" not in self.export:
            raise AirflowFailException("the export's summary could not be read: see `summaries` in docs/airflow.md")
        return load(ExportFiles(self.export["to"]), **requested["load"])


def load(files: ExportFiles, into: str, conn_id: str, **where: str) -> dict[str, Any]:
    """Load an export into a system; returns what was loaded."""
    if into == "postgres":
        from airflow.providers.postgres.hooks.postgres import PostgresHook

        from lake_tasks.load_postgres import load_table

        return load_table(PostgresHook(postgres_conn_id=conn_id), files, **where)
    from lake_tasks.load_opensearch import Cluster, load_index

    return load_index(Cluster(conn_id), files, **where)
