"""A PostgreSQL server of a test's own, from Debian's package or whatever pg_ctl is there."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SERVERS = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")) + [Path(p) for p in [shutil.which("pg_ctl")] if p]


def why_no_server() -> str | None:
    """Why none can be started; None if one can."""
    if not SERVERS:
        return "no PostgreSQL server is installed (Debian: apt-get install postgresql)"
    if os.getuid() == 0 and "postgres" not in {user.pw_name for user in pwd.getpwall()}:
        return "PostgreSQL does not run as root, and there is no user postgres"
    return None


@contextmanager
def postgresql() -> Iterator[Path]:
    """A running server with the user lakerank and the database postgres; the folder with its socket."""
    folder = Path(tempfile.mkdtemp(prefix="lakerank-pg-", dir="/tmp"))
    as_user: list[str] = []
    if os.getuid() == 0:
        as_user = ["runuser", "-u", "postgres", "--"]
        shutil.chown(folder, "postgres")
    control = [*as_user, str(SERVERS[-1]), "-D", str(folder / "data"), "-s", "-w"]
    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
    try:
        initialise = ["-o", "-U lakerank -A trust -E UTF8 --locale=C.UTF-8 -N", "initdb"]
        subprocess.run([*control, *initialise], check=True, cwd="/", capture_output=True)
        subprocess.run([*control, "-o", options, "-l", str(folder / "log"), "start"], check=True, cwd="/")
        try:
            yield folder
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], check=True, cwd="/")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
