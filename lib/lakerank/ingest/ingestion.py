"""One ingestion: a source in, a lake table and a list of what could not be read out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from lakerank.errors import ConfigError
from lakerank.ingest.folder import ReadOptions, read_folder
from lakerank.ingest.items import SourceReject
from lakerank.ingest.rejects import Rejects
from lakerank.ingest.source import open_source
from lakerank.ingest.writer import TableWriter, WrittenTable
from lakerank.lake.storage import Storage, join
from lakerank.lake.uris import is_local, local_path

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ingestion:
    """What an ingestion did. `rejects_uri` is a JSONL file of path, line, page, fault and detail (None: no rejects)."""

    table: str
    written: WrittenTable
    rejected: int
    rejected_by_fault: dict[str, int]
    rejects_uri: str | None
    seconds: float

    def summary(self) -> dict[str, Any]:
        """The job's last line of standard output."""
        written = asdict(self.written)
        return {
            "table": self.table,
            "output": written.pop("uri"),
            **written,
            "rejected": self.rejected,
            "rejected_by_fault": self.rejected_by_fault,
            "rejects": self.rejects_uri,
            "seconds": round(self.seconds, 3),
        }


def ingest(
    storage: Storage,
    source_uri: str,
    output: str,
    options: ReadOptions,
    follow_links: bool = False,
    progress: Callable[[int], None] = lambda rows: None,
) -> Ingestion:
    """Write the table `OUTPUT/<table>/` from the files at `source_uri`, streaming.

    Files, pages and lines that cannot be read do not stop it: they are counted by fault and listed in
    `OUTPUT/rejects/<table>.jsonl`. `progress` is called with the number of rows so far, once a row.

    Raises:
        ConfigError: a kept field would stand twice in the table, or the output lies inside the source.
        StorageError: the source is not there, or the output cannot be written.
    """
    started = time.monotonic()
    faults = [*_kept_faults(options), *output_faults(source_uri, output)]
    if faults:
        raise ConfigError(faults)
    source = open_source(source_uri, storage.options, follow_links)
    writer = TableWriter(storage, join(output, options.table), options.table, options.keep)
    rejects = Rejects()
    rows = 0
    for row in read_folder(source, options):
        if isinstance(row, SourceReject):
            rejects.add(row)
        else:
            writer.write(row)
            rows += 1
            progress(rows)
    written = writer.finish()
    uri = rejects.save(storage, join(output, "rejects", f"{options.table}.jsonl"))
    seconds = time.monotonic() - started
    _log.info("%s: %d rows, %d rejects in %.1f s", options.table, written.rows, rejects.counts.total(), seconds)
    by_fault = dict(sorted(rejects.counts.items()))
    return Ingestion(options.table, written, rejects.counts.total(), by_fault, uri, seconds)


def _kept_faults(options: ReadOptions) -> list[str]:
    taken = {"doc_id", "query_id", "text", "image", "content_hash"}
    faults = [f"keep: '{name}' is a column of the table already" for name in options.keep if name in taken]
    faults += [f"keep: '{name}' is given twice" for name in sorted(set(options.keep)) if options.keep.count(name) > 1]
    if options.keep and options.table in ("candidates", "qrels"):
        faults.append(f"keep: {options.table} has no extra columns")
    return faults


def output_faults(source_uri: str, output: str) -> list[str]:
    """An output inside the source would be read as part of it the next time."""
    if is_local(source_uri) != is_local(output):
        return []
    names = [str(local_path(uri).resolve()) if is_local(uri) else uri for uri in (source_uri, output)]
    inside = f"{names[1].rstrip('/')}/".startswith(f"{names[0].rstrip('/')}/")
    return [f"--output {output} lies inside the source {source_uri}: choose a folder beside it"] if inside else []
