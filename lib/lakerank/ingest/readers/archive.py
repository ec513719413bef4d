"""ZIP archives as sources of files, with limits that are checked before anything is unpacked. Nothing is written."""

from __future__ import annotations

import gzip
import io
import posixpath
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO
from zipfile import ZipFile, ZipInfo

from lakerank.ingest.rejects import SourceError, SourceFault, SourceReject
from lakerank.ingest.source import SourceFile

#: Archives in archives are read to this depth.
MAX_DEPTH = 3

MAX_MEMBERS = 100_000

#: All members of an archive, and of the archives in it, may have so many times the bytes that one file may have.
MAX_TOTAL = 16

#: A member larger than this is refused where it was packed to less than a 200th: texts are seldom, bombs always.
_RATIO_BYTES = 2**24
_RATIO = 200

_HIDDEN = re.compile(r"\.(?!\.?$)|__MACOSX$")


@dataclass
class Budget:
    """Bytes that an archive, with all archives in it, may still unpack to."""

    remaining: int


def check_package(content: bytes, max_bytes: int) -> None:
    """Check a ZIP package that a library unpacks whole, as Office files are, before it does.

    Raises:
        SourceError: it is none, is encrypted, or would unpack to more than `max_bytes`.
    """
    if content.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        detail = "a file with a password, or of Office 97 to 2003: save it without one, in the newer format"
        raise SourceError(SourceFault.FILE_ENCRYPTED, detail)
    with ZipFile(io.BytesIO(content)) as package:
        for member in _checked(package, Budget(max_bytes)):
            if fault := _fault(member, max_bytes):
                raise SourceError(*fault)


def gunzipped(content: bytes, max_bytes: int) -> bytes:
    """A gzipped file's content; raises SourceError where it has more than `max_bytes`."""
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
        plain = stream.read(max_bytes + 1)
    if len(plain) > max_bytes:
        raise SourceError(SourceFault.FILE_TOO_LARGE, f"more than {max_bytes} bytes when unpacked")
    return plain


def _checked(archive: ZipFile, budget: Budget) -> list[ZipInfo]:
    """The members that are files; raises SourceError when there are too many, or too many bytes in them."""
    members = [member for member in archive.infolist() if not member.is_dir()]
    budget.remaining -= sum(member.file_size for member in members)
    if len(members) > MAX_MEMBERS or budget.remaining < 0:
        raise SourceError(SourceFault.FILE_TOO_LARGE, f"{len(members)} members, or more bytes than are unpacked")
    return members


def _fault(member: ZipInfo, max_bytes: int) -> tuple[SourceFault, str] | None:
    """Why a member is not read, None where it may be."""
    if member.file_size > max_bytes:
        return SourceFault.FILE_TOO_LARGE, f"{member.file_size} bytes, the limit is {max_bytes}"
    if member.file_size > max(_RATIO_BYTES, _RATIO * member.compress_size):
        return SourceFault.FILE_TOO_LARGE, f"{member.compress_size} bytes that unpack to {member.file_size}"
    if member.flag_bits & 1:
        return SourceFault.FILE_ENCRYPTED, f"{member.filename} needs a password"
    if stat.S_ISLNK(member.external_attr >> 16):
        return SourceFault.SYMBOLIC_LINK, "a link in an archive is not followed"
    return None


class ArchiveSource:
    """The files of a ZIP archive, as of a folder. Paths begin with the archive's own: `texts.zip/a/b.txt`."""

    is_folder = True

    def __init__(self, path: str, archive: ZipFile, modified: datetime | None, max_bytes: int, budget: Budget) -> None:
        """Raises SourceError when the archive has too many members, or too many bytes in them."""
        self._path = path
        self._archive = archive
        self._modified = modified
        self._max_bytes = max_bytes
        self._members = {member.filename: member for member in _checked(archive, budget)}

    def files(self) -> Iterator[SourceFile | SourceReject]:
        """Every member in the order of paths, without hidden ones; a reject for what is not read."""
        for name in sorted(self._members):
            if any(_HIDDEN.match(part) for part in name.split("/")):
                continue
            member, path = self._members[name], f"{self._path}/{name}"
            if fault := self._name_fault(name) or _fault(member, self._max_bytes):
                yield SourceReject(path.encode(errors="backslashreplace").decode(), *fault)
            else:
                yield SourceFile(path, name, member.file_size, self._modified)

    def _name_fault(self, name: str) -> tuple[SourceFault, str] | None:
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            return SourceFault.NAME_OUTSIDE, "the name leads out of the archive"
        if name != name.encode(errors="replace").decode():
            return SourceFault.NAME_UNDECODABLE, "the name is not UTF-8"
        return None

    def open(self, file: SourceFile) -> BinaryIO:
        """A member in memory."""
        return io.BytesIO(self.read(file))

    def read(self, file: SourceFile) -> bytes:
        """The whole content of a member."""
        return self._archive.read(file.location)

    def within(self, path: str) -> SourceFile | None:
        """The member at a path that begins with the archive's: None when it leads out of the archive.

        Raises:
            FileNotFoundError: there is none, or it is not read.
        """
        path = posixpath.normpath(path)
        if "\\" in path or not path.startswith(f"{self._path}/"):
            return None
        member = self._members.get(path.removeprefix(f"{self._path}/"))
        if member is None or _fault(member, self._max_bytes):
            raise FileNotFoundError(f"{path} is not in the archive")
        return SourceFile(path, member.filename, member.file_size, self._modified)
