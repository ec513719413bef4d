"""The npm packages that the pictogram lakes are made from, pinned by version and hash."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lakerank.errors import DependencyError, StorageError

#: name → (version, SHA-256 of the tarball)
PINNED: Mapping[str, tuple[str, str]] = {
    "@iconify-json/emojione": ("1.2.3", "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e"),
    "@iconify-json/fluent-emoji-flat": ("1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175"),
    "@iconify-json/noto": ("1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
    "@iconify-json/noto-v1": ("1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37"),
    "@iconify-json/twemoji": ("1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7"),
    "cldr-annotations-derived-full": ("48.2.0", "4be946ff5815f806ec78b50363d577a769f2fbfb90c6380a44e161a92436996e"),
    "cldr-annotations-full": ("48.2.0", "28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1"),
    "cldr-localenames-full": ("48.2.0", "7f2ac7fd3b5d90f56ad127f9ed5ae67b58b3e556818f55530b9f47bb81bcde57"),
    "emojibase-data": ("17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a"),
}

#: Those without drawings.
TEXTS = tuple(name for name in PINNED if not name.startswith("@iconify-json/"))


class Packages:
    """The JSON files inside a folder of package tarballs, each read once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._members: dict[str, dict[str, bytes]] = {}

    def fetch(self, names: Collection[str] = PINNED.keys()) -> None:
        """Fetch what is not in the folder yet with the npm client, and check every hash.

        Raises:
            DependencyError: npm is missing or cannot fetch a package.
            StorageError: a tarball is not the pinned one.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            (version, expected), tarball = PINNED[name], self._tarball(name)
            if not tarball.exists():
                _npm_pack(f"{name}@{version}", self._folder)
            actual = hashlib.sha256(tarball.read_bytes()).hexdigest()
            if actual != expected:
                raise StorageError(f"{tarball}: SHA-256 is {actual}, expected {expected}; delete it and fetch it again")

    def read_json(self, name: str, path: str) -> Any:
        """Parse one file of a package; `path` is relative to the package's root.

        Raises:
            KeyError: the package has no such file.
        """
        if name not in self._members:
            self._members[name] = _read_members(self._tarball(name))
        return json.loads(self._members[name][f"package/{path}"])

    def _tarball(self, name: str) -> Path:
        return self._folder / f"{name.removeprefix('@').replace('/', '-')}-{PINNED[name][0]}.tgz"


def _npm_pack(specifier: str, folder: Path) -> None:
    """Let the npm client put one package's tarball into `folder`."""
    command = ["npm", "pack", specifier, "--silent", "--pack-destination", str(folder)]
    try:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603  no shell, pinned arguments
    except FileNotFoundError as error:
        raise DependencyError("npm is not installed: it fetches the packages (Debian: apt install npm)") from error
    except subprocess.CalledProcessError as error:
        raise DependencyError(f"npm pack {specifier} failed with status {error.returncode}") from error


def _read_members(tarball: Path) -> dict[str, bytes]:
    """All JSON files of a tarball by path."""
    members: dict[str, bytes] = {}
    with tarfile.open(tarball) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith(".json") else None
            if file is not None:
                members[member.name] = file.read()
    return members
