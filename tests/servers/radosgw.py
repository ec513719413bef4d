"""Ceph's object gateway in a folder of its own: a real S3 server with real access keys, on loopback.

One monitor, one in-memory OSD and one gateway from Debian's packages `ceph-mon ceph-osd radosgw ceph-common`.
`python tests/servers/radosgw.py --install` installs them where that can be done; without arguments the module starts a
server and prints how to reach it until it is interrupted.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

PACKAGES = ("ceph-mon", "ceph-osd", "radosgw", "ceph-common")
COMMANDS = ("monmaptool", "ceph-mon", "ceph-osd", "ceph", "radosgw", "radosgw-admin")
READY_WITHIN_S = 120.0

CONFIG = """\
[global]
fsid = {fsid}
mon_host = v1:127.0.0.1:{mon_port}
public_addr = 127.0.0.1
ms_bind_msgr2 = false
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_pool_default_pg_autoscale_mode = off
mon_max_pg_per_osd = 1000
mon_allow_pool_size_one = true
mon_data_avail_warn = 1
mon_data_avail_crit = 1
osd_crush_chooseleaf_type = 0
osd_objectstore = memstore
memstore_device_bytes = 4294967296
run_dir = {folder}
admin_socket = {folder}/$name.asok
log_file = {folder}/$name.log
pid_file = {folder}/$name.pid
mon_data = {folder}/mon
osd_data = {folder}/osd
keyring = {folder}/keyring
rgw_frontends = beast endpoint=127.0.0.1:{gateway_port}
rgw_dynamic_resharding = false
rgw_thread_pool_size = 64
"""


class CephMissing(RuntimeError):
    """The packages are not installed, and could not be."""


@dataclass
class Radosgw:
    """A server for the time of a `with`: its endpoint, and the keys of its one user, made up afresh."""

    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="radosgw-")))
    access_key: str = field(default_factory=lambda: "AKIA" + secrets.token_hex(8).upper())
    secret_key: str = field(default_factory=lambda: secrets.token_urlsafe(30), repr=False)
    endpoint: str = ""

    def __enter__(self) -> Radosgw:
        if missing := [command for command in COMMANDS if _found(command) is None]:
            raise CephMissing(f"not installed: {', '.join(missing)}; run tests/servers/radosgw.py --install")
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self) -> None:
        fsid, osd_uuid = str(uuid.uuid4()), str(uuid.uuid4())
        mon_port, gateway_port = _free_ports(2)
        settings = CONFIG.format(fsid=fsid, folder=self.folder, mon_port=mon_port, gateway_port=gateway_port)
        (self.folder / "ceph.conf").write_text(settings)
        monmap = str(self.folder / "monmap")
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v1:127.0.0.1:{mon_port}]", monmap)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
        self._run("ceph-mon", "-i", "a")
        # A monitor just started refuses its first clients (EPERM); asked again, this changes nothing.
        self._until("monitor", lambda: self._run("ceph", "osd", "new", osd_uuid) is not None)
        (self.folder / "osd").mkdir()
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd_uuid)
        # Now and then it asks before it has heard from the monitor which cluster it is in, and gives up ("wrong fsid").
        self._until("OSD", lambda: self._run("ceph-osd", "-i", "0") is not None)
        self._until("1 up", lambda: "1 up" in self._run("ceph", "osd", "stat"))
        self._run("radosgw", "-n", "client.rgw.tests")
        self.endpoint = f"http://127.0.0.1:{gateway_port}"
        self._until("an answer", self._answers)
        self._run(
            "radosgw-admin", "user", "create", "--uid", "tests", "--display-name", "tests",
            "--access-key", self.access_key, "--secret-key", self.secret_key,
        )  # fmt: skip

    def stop(self) -> None:
        """End the processes by their pid files, the gateway first, and remove the folder."""
        for name in ("client.rgw.tests", "osd.0", "mon.a"):
            with contextlib.suppress(OSError, ValueError):
                pid = int((self.folder / f"{name}.pid").read_text())
                os.kill(pid, signal.SIGTERM if name == "mon.a" else signal.SIGKILL)  # nothing here is to be kept
                _wait_for_end(pid)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, command: str, *arguments: str) -> str:
        line = [_found(command) or command, "-c", str(self.folder / "ceph.conf"), *arguments]
        done = subprocess.run(line, capture_output=True, text=True, timeout=READY_WITHIN_S, check=False)
        if done.returncode:
            raise RuntimeError(f"{command} {arguments[0]}: {done.stderr.strip()}\n{self._last_words()}")
        return done.stdout

    def _last_words(self) -> str:
        """The ends of the server's logs: they say what its commands do not."""
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-800:]}" for log in self.folder.glob("*.log"))

    def _until(self, what: str, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        while True:
            with contextlib.suppress(RuntimeError, OSError):
                if done():
                    return
            if time.monotonic() > deadline:
                raise RuntimeError(f"no {what} within {READY_WITHIN_S:.0f} s\n{self._last_words()}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        with contextlib.suppress(urllib.error.HTTPError):  # an answer too
            urllib.request.urlopen(self.endpoint, timeout=5).close()  # noqa: S310 - our own server
        return True


def install() -> None:
    """Install the packages: as root or through sudo, where there is apt-get.

    Raises:
        CephMissing: that cannot be done here; says what to do.
    """
    if all(_found(command) for command in COMMANDS):
        return
    by_hand = f"install Debian's or Ubuntu's packages by hand: sudo apt-get install {' '.join(PACKAGES)}"
    if shutil.which("apt-get") is None:
        raise CephMissing(f"there is no apt-get here: the tests against Ceph need Debian or Ubuntu; {by_hand}")
    if os.geteuid() == 0:
        become: list[str] = []
    elif (
        shutil.which("sudo")
        and subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode == 0
    ):
        become = ["sudo", "-n"]
    else:
        raise CephMissing(f"the tests against Ceph install packages, for which this user may not use sudo; {by_hand}")
    print(f"    installing {' '.join(PACKAGES)} (about 270 MB)", file=sys.stderr)  # noqa: T201
    quiet = [*become, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
    subprocess.run([*quiet, "update"], stdout=sys.stderr, check=False)
    packages = [*quiet, "install", "-y", "--no-install-recommends", *PACKAGES]
    if subprocess.run(packages, stdout=subprocess.DEVNULL, check=False).returncode:
        raise CephMissing(f"apt-get could not install the packages: see the lines above; {by_hand}")


def _found(command: str) -> str | None:
    """A command's path; Debian's daemons lie where an ordinary user's PATH does not lead."""
    return shutil.which(command, path=f"{os.environ.get('PATH', '')}:/usr/bin:/usr/sbin:/sbin")


def _free_ports(count: int) -> list[int]:
    """Ports that nothing listens on; held together, so that they differ."""
    with contextlib.ExitStack() as buffered:
        sockets = [buffered.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


def _wait_for_end(pid: int) -> None:
    for _ in range(100):
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)


if __name__ == "__main__":
    if sys.argv[1:] == ["--install"]:
        try:
            install()
        except CephMissing as error:
            sys.exit(str(error))
    else:
        with Radosgw() as server, contextlib.suppress(KeyboardInterrupt):
            print(f"export AWS_ENDPOINT_URL={server.endpoint} AWS_ACCESS_KEY_ID={server.access_key}")  # noqa: T201
            print(f"export AWS_SECRET_ACCESS_KEY={server.secret_key}", flush=True)  # noqa: T201
            signal.pause()
