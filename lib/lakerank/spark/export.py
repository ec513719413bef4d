"""Write a published run, or what changed since another, in a format: parts by tasks, one manifest at the end."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import from_arrow_schema

from lakerank.errors import ExportError, RunConflictError
from lakerank.export.changes import Change, Row, changes
from lakerank.export.format import Format, Target
from lakerank.export.formats import FORMATS
from lakerank.export.parts import PartLimits, Piece, parts
from lakerank.fingerprint import fingerprint
from lakerank.lake.runs import RunPaths, current_run, read_manifest
from lakerank.lake.storage import Storage, join
from lakerank.spark.export_frames import Sources, frame_of_lists, query_counts
from lakerank.spark.rank.frame import ranked_batches
from lakerank.spark.runtime.frames import describe_job, scatter

#: The layout of exports: a format whose bytes change raises it, so that an old export is not taken for the same.
LAYOUT = 1

MANIFEST = "_manifest.json"
CURRENT = "current"

#: What a task tells the driver: a file that it wrote (one of FILES), or how many lists a change befell.
REPORT = pa.schema(
    [
        ("kind", pa.string()),
        ("name", pa.string()),
        ("rows", pa.int64()),
        ("lists", pa.int64()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
    ]
)


FILES = {"part": "parts", "removal": "removed"}


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


@dataclass(frozen=True, slots=True)
class _Task:
    """What every task of an export needs. Its fingerprint is in the names of the files, so that two exports differ."""

    storage: Storage
    to: str
    made_from: str
    form: Format
    limits: PartLimits

    def name(self, kind: str, *numbers: int, suffix: str) -> str:
        return f"{kind}-{self.made_from[:8]}-{'-'.join(f'{number:05d}' for number in numbers)}{suffix}"

    def write(self, number: int, rows: Iterable[Row], first_number: int = 1) -> Iterator[pa.RecordBatch]:
        """Encode sorted rows and write the files of one task; the same rows give the same names and bytes."""
        counts: Counter[Change] = Counter()
        removed: list[str] = []

        def pieces() -> Iterator[Piece]:
            for one in changes(rows, self.form, first_number):
                counts[one.change] += 1
                if one.current is None and self.form.remove is None:
                    removed.append(one.key)
                elif one.current is None and self.form.remove is not None:
                    yield Piece(self.form.remove(one.key), 0)
                elif one.current is not None and one.change is not Change.UNCHANGED:
                    yield Piece(self.form.encode(one.current), len(one.current.rows))

        for sequence, held in enumerate(parts(pieces(), self.limits)):
            data = self.form.finish([piece.data for piece in held])
            name = self.name("part", number, sequence, suffix=self.form.suffix)
            yield self._put("part", name, data, sum(piece.rows for piece in held), len(held))
        if removed:
            lines = "".join(json.dumps({self.form.by: key}, ensure_ascii=False) + "\n" for key in removed)
            yield self._put("removal", self.name("_removed", number, suffix=".jsonl"), lines.encode(), 0, len(removed))
        for change, lists in counts.items():
            yield _report(change.value, "", 0, lists, 0, "")

    def _put(self, kind: str, name: str, data: bytes, rows: int, lists: int) -> pa.RecordBatch:
        self.storage.replace(join(self.to, name), data)
        return _report(kind, name, rows, lists, len(data), hashlib.sha256(data).hexdigest())


def resolve(storage: Storage, export: Export) -> Export:
    """The export with `current` replaced by the run that is published now.

    Raises:
        ExportError: nothing is published.
    """

    def named(run_id: str) -> str:
        if run_id != CURRENT:
            return run_id
        pointer = current_run(storage, export.output)
        if pointer is None:
            raise ExportError(
                f"{RunPaths(export.output, '').current}: no run is published yet; run jobs/rerank.py first"
            )
        return str(pointer["run_id"])

    values = {"run_id": named(export.run_id), "since": None if export.since is None else named(export.since)}
    return Export(**{name: values.get(name, getattr(export, name)) for name in Export.__slots__})


def finished(storage: Storage, export: Export) -> dict[str, Any] | None:
    """The manifest of an export that is there already, for which no Spark need start; None when there is none.

    Raises:
        ExportError: a run is not published.
        RunConflictError: the folder holds something else.
    """
    made_from = _made_from(storage, export)
    address = join(export.to, MANIFEST)
    if storage.exists(address):
        found = dict(json.loads(storage.read_bytes(address)))
        if found.get("made_from") != made_from:
            raise RunConflictError(
                f"{address}: this folder holds another export ({found.get('format')} of run {found.get('run_id')!r}, "
                "or with other options); name an empty folder with --to"
            )
        return found
    own = (f"part-{made_from[:8]}-", f"_removed-{made_from[:8]}-")
    strange = [name for name in storage.list_names(export.to) if not name.startswith(own)]
    if strange:
        raise RunConflictError(
            f"{export.to}: not empty, and no finished export ({', '.join(strange[:3])}); empty it or use another --to"
        )
    return None


def export_run(spark: SparkSession, storage: Storage, export: Export) -> dict[str, Any]:
    """Write the parts, then the manifest that names them. Returns the manifest that stands.

    Raises:
        ExportError: a run is not published, or an id does not fit the format.
        RunConflictError: the folder holds something else.
    """
    found = finished(storage, export)
    if found is not None:
        return found
    form = FORMATS[export.format](export.target)
    task = _Task(storage, export.to, _made_from(storage, export), form, export.limits)
    describe_job(spark, f"export: {export.format} of run {export.run_id}")
    plain = export.since is None and export.pairs is None and form.by == "query_id"
    if plain and not form.needs_query_text and not form.needs_first_stage_score:
        reports = _from_files(spark, storage, export, task)
    else:
        reports = _from_frame(spark, storage, export, task)
    manifest = _manifest(export, task.made_from, reports.to_pylist())
    encoded = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    if not storage.create(join(export.to, MANIFEST), encoded):
        return finished(storage, export) or manifest  # the same command twice at once: the same parts
    return manifest


def summary(export: Export, manifest: Mapping[str, Any], started: float) -> dict[str, Any]:
    """The job's last line: the manifest without its parts, and how long it took."""
    told = {name: value for name, value in manifest.items() if name not in ("parts", "removed", "target", "limits")}
    seconds = time.monotonic() - started
    return {**told, "to": export.to, "files": len(manifest["parts"]), "seconds": round(seconds, 3)}


def _from_files(spark: SparkSession, storage: Storage, export: Export, task: _Task) -> pa.Table:
    """Each file of ranked/ by a task of its own, as it lies there: no shuffle."""
    files = run_files(storage, export.output, export.run_id)
    first = [1] * len(files)
    if task.form.numbered:
        first = query_counts(spark, storage, files).first_numbers

    def work(number: int) -> Iterator[pa.RecordBatch]:
        batches = ranked_batches(storage, files[number], export.depth)
        yield from task.write(number, (row for batch in batches for row in batch.to_pylist()), first[number])

    return scatter(spark, range(len(files)), work, REPORT).toArrow()


def _from_frame(spark: SparkSession, storage: Storage, export: Export, task: _Task) -> pa.Table:
    """Lists put together by a shuffle of keys: from two runs, by document, or with columns of other tables."""
    sources = Sources(
        run_files(storage, export.output, export.run_id),
        None if export.since is None else run_files(storage, export.output, export.since),
        export.queries if task.form.needs_query_text else None,
        export.candidates if task.form.needs_first_stage_score else None,
    )
    lists = frame_of_lists(spark, storage, sources, task.form, export.depth, export.limits.rows, export.pairs)
    first = lists.first_numbers

    def work(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        rows = (row for batch in batches for row in batch.to_pylist())
        head = next(rows, None)
        if head is not None:
            number = head["part"]
            yield from task.write(number, _chain(head, rows), first[number] if first else 1)

    frame: DataFrame = lists.frame
    return frame.mapInArrow(work, from_arrow_schema(REPORT)).toArrow()


def run_files(storage: Storage, output: str, run_id: str) -> list[str]:
    """The files of a published run's ranked/, in the order of the queries.

    Raises:
        ExportError: the run is not published.
    """
    folder = RunPaths(output, run_id).ranked
    return [join(folder, one["file"]) for one in _manifest_of(storage, output, run_id)["ranked_files"] if one["rows"]]


def _manifest_of(storage: Storage, output: str, run_id: str) -> dict[str, Any]:
    manifest = read_manifest(storage, output, run_id)
    if manifest is None:
        raise ExportError(f"{RunPaths(output, run_id).manifest}: not there, so run {run_id!r} is not published")
    return manifest


def _made_from(storage: Storage, export: Export) -> str:
    """Fingerprint of everything that the bytes of an export depend on."""
    values = {name: getattr(export, name) for name in Export.__slots__ if name not in ("target", "limits", "to")}
    for name in ("run_id", "since"):
        if values[name] is not None:
            manifest = _manifest_of(storage, export.output, values[name])
            values[name] = [values[name], manifest["scorer"], manifest["published_at"]]
    del values["output"]
    form = FORMATS[export.format](export.target)
    values["queries"] = export.queries if form.needs_query_text else None
    values["candidates"] = export.candidates if form.needs_first_stage_score else None
    return fingerprint({**values, "target": asdict(export.target), "limits": asdict(export.limits), "layout": LAYOUT})


def _manifest(export: Export, made_from: str, reports: list[dict[str, Any]]) -> dict[str, Any]:
    """What an export consists of; it says nothing of when or where, so that the same command writes the same bytes."""
    lists: Counter[str] = Counter({change.value: 0 for change in Change})
    files: dict[str, list[dict[str, Any]]] = {kind: [] for kind in FILES}
    for report in sorted(reports, key=lambda one: str(one["name"])):
        kind = report.pop("kind")
        if kind in files:
            files[kind].append(report)
        else:
            lists[kind] += report["lists"]
    return {
        "format": export.format,
        "run_id": export.run_id,
        "since": export.since,
        "depth": export.depth,
        "made_from": made_from,
        "target": asdict(export.target),
        "limits": asdict(export.limits),
        "lists": dict(lists),
        "rows": sum(part["rows"] for part in files["part"]),
        "bytes": sum(part["bytes"] for part in files["part"]),
        **{name: files[kind] for kind, name in FILES.items()},
    }


def _report(*values: object) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({name: [v] for name, v in zip(REPORT.names, values, strict=True)}, REPORT)


def _chain(first: Row, rest: Iterable[Row]) -> Iterator[Row]:
    yield first
    yield from rest
