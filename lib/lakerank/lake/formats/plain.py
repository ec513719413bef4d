"""Plain Parquet: a file, a folder at any depth, or a glob."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from lakerank.credentials import redacted
from lakerank.errors import StorageError
from lakerank.lake import has_wildcard, is_hidden, is_local, local_path
from lakerank.lake.formats.snapshot import TableFile, TableSnapshot
from lakerank.lake.storage import Storage

logger = logging.getLogger(__name__)

#: How a folder shows that its Parquet files are those of another table format.
_FORMATS = {
    "Delta": re.compile(r"/_delta_log(/|$)"),
    "Iceberg": re.compile(r"/metadata/[^/]+\.metadata\.json$"),
    "Hudi": re.compile(r"/\.hoodie(/|$)"),
}

#: Files that writers leave in a table's folder; nobody misses them.
_MARKS = re.compile(r"_SUCCESS|_committed_.*|_started_.*|_(common_)?metadata|\..*")
_logged: set[str] = set()


def snapshot(storage: Storage, address: str) -> TableSnapshot:
    """The Parquet files of a file, a folder or a glob, sorted by URI.

    Names that begin with `.` or `_` below the folder are skipped (partitions `_column=value` are not), and so is what
    does not end in `.parquet`: the log names them, once. A single file may have any name.

    Raises:
        StorageError: there is no such file, or it cannot be listed, or the folder is of another table format.
    """
    listing = storage.list_table(address)
    _check_format(address, [*listing.passed_over, *(file.uri.removeprefix(address) for file in listing.parts)])
    _name_passed_over(address, listing.passed_over)
    if not listing.parts:
        path = local_path(address).absolute() if is_local(address) and not has_wildcard(address) else None
        if path is not None and not path.exists():
            raise StorageError(f"{redacted(address)}: there is no such file or folder (looked for {path})")
        raise StorageError(
            f"{redacted(address)}: no Parquet file is there; check the name, and that files end in .parquet "
            "(`lakerank ingest` makes tables of other files)"
        )
    files = [TableFile(file.uri, file.size, file.version) for file in listing.parts]
    return TableSnapshot(address, sorted(files, key=lambda file: file.uri), passed_over=len(listing.passed_over))


def _check_format(uri: str, names: Sequence[str]) -> None:
    """Refuse a folder whose files belong to a table format: some of them are old versions of rows, or deleted."""
    for name in names:
        for table_format, sign in _FORMATS.items():
            if sign.search(f"/{name}"):
                raise StorageError(
                    f"{redacted(uri)}: a {table_format} table, whose Parquet files hold deleted and replaced rows too; "
                    "write its current rows as plain Parquet (spark.table(…).write.parquet(…)) and name that folder"
                )


def _name_passed_over(uri: str, names: Sequence[str]) -> None:
    """Log what is in a table's folder and not read, once a process."""
    shown = {f"{name.split('/')[0]}/" if "/" in name and is_hidden(name) else name for name in names}
    tops = sorted(name for name in shown if not _MARKS.fullmatch(name.rstrip("/").rpartition("/")[2]))
    if tops and uri not in _logged:
        _logged.add(uri)
        more = f" and {len(tops) - 5} more" if len(tops) > 5 else ""
        logger.warning("%s: not read: %s%s (hidden, or not .parquet)", redacted(uri), ", ".join(tops[:5]), more)
