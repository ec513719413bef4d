"""Plain Parquet: a file, a folder at any depth, or a glob. Folders of other table formats are refused."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain

from lakerank.credentials import redacted
from lakerank.errors import StorageError
from lakerank.lake import has_wildcard, is_hidden, is_local, is_table_part, local_path, split_wildcard
from lakerank.lake.snapshot import TableFile, TableSnapshot
from lakerank.lake.storage import Storage, join

logger = logging.getLogger(__name__)

#: What is in the folder of another format's table, and what to do about it. `{uri}` is the folder.
_FORMATS = {
    "Delta": ("_delta_log", "name it as delta+{uri}, which reads its current rows"),
    "Iceberg": ("metadata/[^/]+\\.metadata\\.json", "name it by its catalog: iceberg://<catalog>/<namespace>.<table>"),
    "Hudi": ("\\.hoodie", "write its current rows as plain Parquet (spark.table(…).write.parquet(…)), and name those"),
    "Lance": ("_versions", "write its rows as plain Parquet (lance.dataset(…).to_batches()), and name that folder"),
}
_MARK_FOLDERS = ("_delta_log", ".hoodie", "_versions")
_SIGNS = {name: re.compile(f"(?:^|/){sign}(?:/|$)") for name, (sign, _) in _FORMATS.items()}

#: Folders in a table's folder in which its files are: partitions, Iceberg's `data`, those named by a hash or a day.
_WITHIN = re.compile(r".*=.*|data|[0-9]+|[0-9a-f]{8,}")

#: Files that writers leave in a table's folder; nobody misses them.
_MARKS = re.compile(r"_SUCCESS|_committed_.*|_started_.*|_(common_)?metadata|\..*")

#: Files with other suffixes, or none, are data if they are Parquet: Hive's and Impala's have none.
_OTHER_SUFFIXES = re.compile(
    r".*\.(arrow|avro|bmp|bz2|crc|csv|db|docx?|feather|gif|gz|html?|ipc|jpe?g|jsonl?|lance|lock|log|lz4|md|ndjson|npy|orc"
    r"|pdf|png|pptx?|py|safetensors|sql|sqlite|tar|tiff?|tmp|toml|tsv|txt|webp|xlsx?|xml|xz|ya?ml|zip|zst)",
    re.IGNORECASE,
)
_PROBE_THREADS = 16

#: Whether files of no known suffix are Parquet, by URI and version, and addresses whose rest has been logged.
_probed: dict[tuple[str, str], bool] = {}
_logged: set[str] = set()


def snapshot(storage: Storage, address: str) -> TableSnapshot:
    """The Parquet files of a file, a folder or a glob, sorted by URI.

    Names that begin with `.` or `_` below the folder are skipped (partitions `_column=value` are not), and so is what
    is not Parquet by its name, or without a known suffix by its first and last bytes: the log names them, once. A
    single file may have any name.

    Raises:
        StorageError: there is no such file, or it cannot be listed, or the folder is of another table format.
    """
    listing = storage.list_table(address)
    _check_format(storage, address, listing)
    doubtful = [info for name, info in listing.items() if name and _is_doubtful(name)]
    unknown = [info for info in doubtful if (info.uri, info.version) not in _probed]
    with ThreadPoolExecutor(_PROBE_THREADS, "probes") as pool:
        for info, is_parquet in zip(unknown, pool.map(storage.is_parquet, unknown), strict=True):
            _probed[info.uri, info.version] = is_parquet
    parts = {info.uri for info in doubtful if _probed[info.uri, info.version]}
    parts |= {info.uri for name, info in listing.items() if not name or is_table_part(name)}
    passed_over = _name_passed_over(address, [name for name, info in listing.items() if info.uri not in parts])
    if not parts:
        path = local_path(address).absolute() if is_local(address) and not has_wildcard(address) else None
        if path is not None and not path.exists():
            raise StorageError(f"{redacted(address)}: there is no such file or folder (looked for {path})")
        raise StorageError(
            f"{redacted(address)}: no Parquet file is there; check the name (`lakerank ingest` makes tables of other "
            "files)"
        )
    files = [TableFile(info.uri, info.size, info.version) for info in listing.values() if info.uri in parts]
    return TableSnapshot(address, sorted(files, key=lambda file: file.uri), passed_over=passed_over)


def _is_doubtful(name: str) -> bool:
    """Whether only a file's content tells if it is data."""
    hidden = name.endswith("/") or any(map(is_hidden, name.split("/")))
    return not (hidden or is_table_part(name) or _OTHER_SUFFIXES.fullmatch(name))


def _check_format(storage: Storage, address: str, listing: Iterable[str]) -> None:
    """Refuse what is of a table of another format: some of its files hold old versions of rows, or deleted ones."""
    folder = str(local_path(address).absolute()) if is_local(address) else address.rstrip("/")
    is_folder = "" not in listing and not has_wildcard(folder)
    if "" in listing:
        folder = folder.rpartition("/")[0]
    elif not is_folder:
        folder = split_wildcard(folder)[0].rstrip("/")
    inside = ((table_format, join(folder, root)) for table_format, root in _roots(listing))
    outside = (
        (table_format, outer)
        for outer in _outer_folders(folder, not is_folder)
        for table_format, _ in _roots(_marks_of(storage, outer))
    )
    for table_format, root in chain(inside, outside):
        advice = _FORMATS[table_format][1].format(uri=redacted(f"file://{root}" if is_local(root) else root))
        raise StorageError(
            f"{redacted(address)}: in {table_format}'s format, whose files hold deleted and replaced rows too; {advice}"
        )


def _roots(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Formats of the tables that some names show, and the folder of each."""
    for name in names:
        for table_format, sign in _SIGNS.items():
            if match := sign.search(name):
                yield table_format, name[: match.start()]


def _outer_folders(folder: str, itself: bool) -> Iterator[str]:
    """The folders that a folder may be a part of, by its name, up to the bucket or the root."""
    if itself:
        yield folder
    while _WITHIN.fullmatch(folder.rpartition("/")[2]):
        folder = folder.rpartition("/")[0]
        if "/" not in folder.partition("://")[2] and not is_local(folder):
            return
        yield folder


def _marks_of(storage: Storage, folder: str) -> Iterator[str]:
    """What shows a table format in a folder; nothing where nobody may look."""
    with suppress(StorageError):
        yield from (name for name in _MARK_FOLDERS if storage.exists(join(folder, name)))
        yield from (f"metadata/{name}" for name in storage.list_names(join(folder, "metadata")))


def _name_passed_over(uri: str, names: Iterable[str]) -> int:
    """Log what is in a table's folder and not read, once a process; returns how much that is."""
    shown = {f"{name.split('/')[0]}/" if "/" in name and is_hidden(name) else name for name in names}
    tops = sorted(name for name in shown if not _MARKS.fullmatch(name.rstrip("/").rpartition("/")[2]))
    if tops and uri not in _logged:
        _logged.add(uri)
        more = f" and {len(tops) - 5} more" if len(tops) > 5 else ""
        logger.warning("%s: not read: %s%s (hidden, or not Parquet)", redacted(uri), ", ".join(tops[:5]), more)
    return len(tops)
