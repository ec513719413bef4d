"""The lake: its files and tables, and the protocol of the output folder. The only package with object-store I/O.

Here are file names, as plain paths and URIs: joined, and split at wildcards.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_LOCAL_SCHEMES = ("", "file", "local")

#: How addresses of tables of these formats begin.
DELTA, ICEBERG = "delta+", "iceberg://"

_WILDCARD = re.compile(r"[*?\[]")
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_PARQUET_SUFFIXES = (".parquet", ".parq", ".pq")


def join(uri: str, *parts: str) -> str:
    """Put parts below a plain path or a URI, with one slash between."""
    joined = uri
    for part in parts:
        name = part.strip("/")
        if name:
            joined += name if not joined or joined.endswith("/") else f"/{name}"
    return joined


def scheme(uri: str) -> str:
    """The scheme in lower case; "" for a plain path. `file:/path` counts as `file`, as Spark writes it."""
    match = _SCHEME.match(uri)
    if match:
        return match[1].lower()
    return "file" if uri.startswith("file:/") else ""


def is_local(uri: str) -> bool:
    """Whether a name is a path on this machine."""
    return scheme(uri) in _LOCAL_SCHEMES


def local_path(uri: str) -> Path:
    """The path of a local name. Nothing is percent-decoded: fsspec does not either."""
    bare = _SCHEME.sub("", uri, count=1)
    return Path(bare.removeprefix("file:")).expanduser()


def absolute(address: str) -> str:
    """The address of a table from any folder: a local path begins at the root. `embedded` stays as it is."""
    prefix = DELTA if address.startswith(DELTA) else ""
    path = address.removeprefix(prefix)
    return f"{prefix}{local_path(path).absolute()}" if is_local(path) and path != "embedded" else address


def has_wildcard(uri: str) -> bool:
    """Whether a name is a pattern."""
    return _WILDCARD.search(uri) is not None


def split_wildcard(uri: str) -> tuple[str, str]:
    """The folder before the first wildcard, and the pattern below it."""
    match = _WILDCARD.search(uri)
    slash = uri.rfind("/", 0, match.start() if match else len(uri))
    if slash < 0:
        return "", uri
    folder = uri[:slash]
    return (f"{folder}/" if not folder or folder.endswith(("/", ":")) else folder), uri[slash + 1 :]


def is_table_part(relative: str) -> bool:
    """Whether a file below a table's folder is part of the table: Parquet, not hidden, not in a hidden folder."""
    return relative.endswith(_PARQUET_SUFFIXES) and not any(is_hidden(name) for name in relative.split("/"))


def is_hidden(name: str) -> bool:
    """Whether a file's or folder's name is hidden, as it is to Spark: `.x` and `_x`, but not the partition `_x=1`."""
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def path_values(uri: str) -> dict[str, str | None]:
    """The columns that folders named `column=value` give to the rows of a file, as Hive and Spark write them."""
    pairs = (folder.split("=", 1) for folder in uri.split("/")[:-1] if "=" in folder)
    return {unquote(name): None if value == _HIVE_NULL else unquote(value) for name, value in pairs}
