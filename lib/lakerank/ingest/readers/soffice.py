"""Office files as page images, through LibreOffice where that is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from lakerank.ingest.rejects import SourceError, SourceFault

#: A file that takes longer is a reject.
TIMEOUT_S = 180

#: A profile of its own: no macros run, nothing that a file links to is fetched, links are not updated.
_SETTINGS = """<?xml version="1.0" encoding="UTF-8"?>
<oor:items xmlns:oor="http://openoffice.org/2001/registry">
<item oor:path="/org.openoffice.Office.Common/Security/Scripting">
<prop oor:name="MacroSecurityLevel" oor:op="fuse"><value>3</value></prop></item>
<item oor:path="/org.openoffice.Office.Common/Security/Scripting">
<prop oor:name="DisableMacrosExecution" oor:op="fuse"><value>true</value></prop></item>
<item oor:path="/org.openoffice.Office.Common/Security/Scripting">
<prop oor:name="BlockUntrustedRefererLinks" oor:op="fuse"><value>true</value></prop></item>
<item oor:path="/org.openoffice.Office.Writer/Content/Update">
<prop oor:name="Link" oor:op="fuse"><value>0</value></prop></item>
<item oor:path="/org.openoffice.Office.Calc/Content/Update">
<prop oor:name="Link" oor:op="fuse"><value>1</value></prop></item>
</oor:items>
"""

#: An address where nothing answers: whatever a file asks the network for fails at once.
_NO_NETWORK = dict.fromkeys(
    ("http_proxy", "https_proxy", "ftp_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"
)


def find_soffice() -> str | None:
    """LibreOffice's program, None where it is not installed."""
    return shutil.which("soffice") or shutil.which("libreoffice")


def office_pdf(soffice: str, content: bytes, suffix: str, timeout_s: float = TIMEOUT_S) -> bytes:
    """An Office file printed as PDF, by a LibreOffice process of its own.

    Raises:
        SourceError: LibreOffice cannot read it, or takes longer than `timeout_s` seconds.
    """
    with tempfile.TemporaryDirectory(prefix="lakerank-office-") as folder:
        source, profile = Path(folder, f"file{suffix}"), Path(folder, "profile", "user")
        profile.mkdir(parents=True)
        (profile / "registrymodifications.xcu").write_text(_SETTINGS)
        source.write_bytes(content)
        command = [
            *(soffice, f"-env:UserInstallation={profile.parent.as_uri()}", "--headless", "--norestore", "--nologo"),
            *("--nodefault", "--nofirststartwizard", "--convert-to", "pdf", "--outdir", folder, str(source)),
        ]
        environment = {**os.environ, **_NO_NETWORK, "HOME": folder}
        process = subprocess.Popen(  # noqa: S603 - a fixed program; the file's name is ours
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise SourceError(SourceFault.FILE_UNREADABLE, f"LibreOffice took over {timeout_s:.0f} s") from error
        finally:
            _end(process)
        result = source.with_suffix(".pdf")
        if not result.is_file():
            raise SourceError(SourceFault.FILE_UNREADABLE, f"LibreOffice makes no pages of it ({process.returncode})")
        return result.read_bytes()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and what it started; `soffice` is a script around the program."""
    if process.poll() is None:
        os.killpg(process.pid, 9)
        process.wait()
