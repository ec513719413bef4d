"""An export: what of which run, in which format, to where; and the manifest, which makes it complete."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from operator import itemgetter
from typing import Any

from lakerank.errors import ExportError, RunConflictError
from lakerank.export import pairs, search
from lakerank.export.format import Change, Format, PartLimits, Target
from lakerank.fingerprint import fingerprint
from lakerank.lake import DELTA, ICEBERG
from lakerank.lake.checksums import json_bytes
from lakerank.lake.formats.output import OutputTable, RunRows, write_rows
from lakerank.lake.runs import RunPaths, read_json, read_manifest
from lakerank.lake.storage import Storage, join

FORMATS: dict[str, Callable[[Target], Format]] = {
    "trec-run": pairs.trec_run,
    "trec-qrels": pairs.trec_qrels,
    "quepid-csv": pairs.quepid_csv,
    "ltr-judgements": pairs.ltr_judgements,
    "svmrank": pairs.svmrank,
    "opensearch-lists": search.opensearch_lists,
    "opensearch-documents": search.opensearch_documents,
    "opensearch-groups": partial(search.opensearch_documents, by="group_id"),
    "vespa-lists": search.vespa_lists,
    "vespa-documents": search.vespa_documents,
    "vespa-groups": partial(search.vespa_documents, by="group_id"),
    "parquet": pairs.parquet,
    "csv": pairs.flat_csv,
    "golden-pairs": pairs.golden_pairs,
}

#: Formats whose exports are a commit to a table, and how the table's address begins.
TABLES = {"iceberg": ICEBERG, "delta": DELTA}

#: The layout of exports: a format whose bytes change raises it, so that an old export is not taken for the same.
LAYOUT = 2

MANIFEST = "_manifest.json"


@dataclass(frozen=True, slots=True)
class Export:
    """An export in plain values. `run_id` and `since` are run ids; `pairs` bounds a sample, None is everything."""

    output: str
    run_id: str
    since: str | None
    format: str
    target: Target
    to: str
    depth: int | None
    limits: PartLimits
    pairs: int | None
    queries: str
    candidates: str

    @property
    def form(self) -> Format:
        """The format, for the export's target."""
        return FORMATS[self.format](self.target)


def export_table(storage: Storage, export: Export, started: float) -> dict[str, Any]:
    """Replace the rows of a table by a run's, in one commit, unless they are there. Returns the job's last line.

    Raises:
        ExportError: the run is not published.
        SchemaError, StorageError: the table cannot hold the rows, or cannot be written.
    """
    manifest = _run_manifest(storage, export.output, export.run_id)
    folder = RunPaths(export.output, export.run_id).ranked
    rows = RunRows.of(export.output, folder, {**manifest, "publication": None}, export.depth)
    written = write_rows(storage, OutputTable(export.to), rows)
    shown = {"format": export.format, "run_id": export.run_id, "depth": export.depth, "made_from": rows.made_from}
    return {**shown, "to": export.to, **written, "seconds": round(time.monotonic() - started, 3)}


def finished(storage: Storage, export: Export) -> dict[str, Any] | None:
    """The manifest of an export that is complete, for which no Spark need start; None when there is none.

    Raises:
        ExportError: a run is not published.
        RunConflictError: the folder holds something else.
    """
    made_from = fingerprint_of(storage, export)
    address = join(export.to, MANIFEST)
    if (manifest := read_json(storage, address)) is not None:
        if manifest.get("made_from") != made_from:
            raise RunConflictError(
                f"{address}: this folder holds another export ({manifest.get('format')} of run "
                f"{manifest.get('run_id')!r}, or with other options); name an empty folder with --to"
            )
        return manifest
    prefixes = (f"part-{made_from[:8]}-", f"_removed-{made_from[:8]}-")
    foreign = [name for name in storage.list_names(export.to) if not name.startswith(prefixes)]
    if foreign:
        raise RunConflictError(
            f"{export.to}: not empty, and no finished export ({', '.join(foreign[:3])}); empty it or use another --to"
        )
    return None


def finish(storage: Storage, export: Export, made_from: str, reports: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Write the manifest of an export whose parts are written. Returns the manifest in effect.

    It says nothing of when or where, so that the same command writes the same bytes.

    Args:
        reports: `kind, name, rows, lists, bytes, sha256` of each file, and `lists` of each kind of Change.
    """
    by_kind: dict[str, list[dict[str, Any]]] = {kind: [] for kind in ("part", "removal", *Change)}
    for report in sorted(reports, key=itemgetter("name")):
        by_kind[report.pop("kind")].append(report)
    manifest = {
        "format": export.format,
        "run_id": export.run_id,
        "since": export.since,
        "depth": export.depth,
        "made_from": made_from,
        "target": asdict(export.target),
        "limits": asdict(export.limits),
        "lists": {change.value: sum(report["lists"] for report in by_kind[change]) for change in Change},
        "rows": sum(part["rows"] for part in by_kind["part"]),
        "bytes": sum(part["bytes"] for part in by_kind["part"]),
        "parts": by_kind["part"],
        "removed": by_kind["removal"],
    }
    if not storage.create(join(export.to, MANIFEST), json_bytes(manifest)):
        return finished(storage, export) or manifest  # the same command twice at once: the same parts
    return manifest


def summary(export: Export, manifest: Mapping[str, Any], started: float) -> dict[str, Any]:
    """The job's last line: the manifest without its parts, and the seconds since `started`."""
    shown = {name: value for name, value in manifest.items() if name not in ("parts", "removed", "target", "limits")}
    seconds = time.monotonic() - started
    return {**shown, "to": export.to, "files": len(manifest["parts"]), "seconds": round(seconds, 3)}


def run_files(storage: Storage, output: str, run_id: str) -> list[str]:
    """The files of a published run's ranked/ that have rows (the first, if none has), in the order of the queries.

    Raises:
        ExportError: the run is not published.
    """
    folder, files = RunPaths(output, run_id).ranked, _run_manifest(storage, output, run_id)["ranked_files"]
    return [join(folder, file["file"]) for file in [file for file in files if file["rows"]] or files[:1]]


def row_count(storage: Storage, export: Export) -> int:
    """Rows of the run's lists, and of the older run's.

    Raises:
        ExportError: a run is not published.
    """
    runs = [run_id for run_id in (export.run_id, export.since) if run_id is not None]
    manifests = [_run_manifest(storage, export.output, run_id) for run_id in runs]
    return sum(file["rows"] for manifest in manifests for file in manifest["ranked_files"])


def fingerprint_of(storage: Storage, export: Export) -> str:
    """Fingerprint of everything that the bytes of an export depend on.

    Raises:
        ExportError: a run is not published.
    """
    values = {name: value for name, value in asdict(export).items() if name not in ("output", "to")}
    for name in ("run_id", "since"):
        if values[name] is not None:
            manifest = _run_manifest(storage, export.output, values[name])
            if export.form.by == "group_id" and manifest["ranking"].get("per_group") is None:
                raise ExportError(
                    f"run {values[name]!r} was ranked without ranking.per_group, so its lists have no groups; "
                    "publish a run with it: stored scores are reused"
                )
            values[name] = [values[name], manifest["scorer"], manifest["published_at"]]
    values["queries"] = export.queries if export.form.needs_query_text else None
    values["candidates"] = export.candidates if export.form.needs_first_stage_score else None
    return fingerprint({**values, "layout": LAYOUT})


def _run_manifest(storage: Storage, output: str, run_id: str) -> dict[str, Any]:
    manifest = read_manifest(storage, output, run_id)
    if manifest is None:
        raise ExportError(
            f"{RunPaths(output, run_id).manifest}: not there, so run {run_id!r} is not published; if its audit failed "
            "(audit.json beside it), `lakerank rerank --publish-anyway` publishes it"
        )
    return manifest
