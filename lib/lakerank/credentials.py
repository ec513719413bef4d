"""How a store is reached; credentials in addresses: taken out where one is given, put back there, shown nowhere.

So what is stored, compared or logged has an address without them: they are in the memory of a job's processes alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import quote, unquote

from annotated_types import Ge, Gt

#: Names of settings, parameters and variables whose values are secret; Spark's own list has fewer.
_SECRET_NAME = re.compile(
    r"secret|passw|passphrase|credential|authorization|connection.?string|"
    r"(?:access|account|api|private|shared|storage|encryption|subscription).?key|token(?![a-z])|"
    r"(?:^|[._-])(?:sas|sig|signature)(?:$|[._-])|[._-]pwd$",
    re.IGNORECASE,
)
#: What is signed along with a secret parameter, and changes with it; the second, beside Azure's `sig`.
_SIGNED = re.compile(r"x-(?:amz|goog|oss|ms)-.*|expires|key-pair-id|policy|(?:google|oss)accessid", re.IGNORECASE)
_SIGNED_BY_AZURE = re.compile(r"s[a-z]{1,4}", re.IGNORECASE)

#: User and password; a password may hold an unquoted slash. A port and a path with an @ are neither.
_USER = re.compile(
    r"\b([A-Za-z][A-Za-z0-9+.-]*)://((?:[^\s/?#\"'<>]*|[^\s/?#:\[\"'<>]*:(?!:|\d+(?:[/?#]|$))[^\s@\"'<>]*)@)(?=[^/\s])"
)
_QUERY = re.compile(r"(://[^\s?]*)\?([^\s#\"'<>]*=[^\s#\"'<>]*)")
_GIVEN = re.compile(r"([\w.-]+)(=|[\"']: *[\"'])([^\s\"'&,;)]+)")
_HEADER = re.compile(r"(Authorization\W{1,5}(?:\w+ +)?)[\w+/=.~-]+", re.IGNORECASE)
_KEY_ID = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b")

_WILDCARD = re.compile(r"[*?\[]")

#: Schemes where a name alone before the @ is a password, and where what is there is none.
_HTTP, _NOT_USERS = ("http", "https"), ("github", "gitlab")

#: Shorter ones would be found everywhere.
_MIN_CHARACTERS = 4


#: Secrets, and full addresses by those without credentials.
Known: TypeAlias = tuple[set[str], dict[str, str]]


@dataclass(frozen=True, slots=True)
class StorageOptions:
    """Connection settings, and whether to verify pages of input files; the config's `lake.storage`. No credentials:
    they come from the environment or a profile. `min_transfer_rate`: bytes a second.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    anonymous: bool = False
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    connect_timeout_s: Annotated[float, Gt(0)] = 10.0
    request_timeout_s: Annotated[float, Gt(0)] = 60.0
    max_attempts: Annotated[int, Ge(1)] = 5
    min_transfer_rate: Annotated[float, Gt(0)] = 16384.0
    verify_checksums: bool = True

    def transfer_s(self, size: int, attempts: int = 1) -> float:
        """Seconds that a transfer of so many bytes may take, with the attempts that its client makes itself."""
        return attempts * self.request_timeout_s + size / self.min_transfer_rate


class _Process:
    """What a process was given."""

    secrets: set[str] = set()  # noqa: RUF012 - one process, one set
    addresses: dict[str, str] = {}  # noqa: RUF012


def is_secret(name: str) -> bool:
    """Whether a setting, a parameter or a variable holds a secret, by its name."""
    return _SECRET_NAME.search(name) is not None


def hide(secret: str) -> None:
    """Show a secret nowhere."""
    _Process.secrets |= {form for form in (secret, unquote(secret), quote(unquote(secret), safe="")) if form}


def without_credentials(text: str) -> str:
    """The text without user, password and signature of the addresses in it."""
    return _QUERY.sub(_unsigned, _USER.sub(_without_user, text))


def withheld(text: str) -> str:
    """`without_credentials`, which this process remembers, to reach what is there."""
    clean = without_credentials(text)
    if clean == text:
        return clean
    for match in _USER.finditer(text):
        if _without_user(match) != match[0]:
            user, _, password = match[2].removesuffix("@").partition(":")
            hide(password or user)
    for pair in (pair for match in _QUERY.finditer(text) for pair in match[2].split("&")):
        name, _, value = pair.partition("=")
        if is_secret(name):
            hide(value)
    _Process.addresses[clean] = text
    return clean


def complete(address: str) -> str:
    """An address with the credentials that were withheld from it, or from a folder or pattern that it is below."""
    if address in _Process.addresses:
        return _Process.addresses[address]
    for clean, full in sorted(_Process.addresses.items(), key=lambda item: len(item[0]), reverse=True):
        full, _, query = full.partition("?") if _QUERY.search(full) else (full, "", "")
        clean = clean.partition("?")[0] if query else clean
        folder = _WILDCARD.split(clean, maxsplit=1)[0]
        folder = folder.rstrip("/") if folder == clean else folder.rpartition("/")[0]
        if address.startswith(f"{folder}/"):
            full = full[: len(full) - len(clean) + len(folder)]
            return f"{full}{address[len(folder) :]}{f'?{query}' if query else ''}"
    return address


def settings_without(settings: Any, name: str = "") -> Any:
    """Nested settings without the credentials in their addresses. Spark's properties stay as they are."""
    if isinstance(settings, Mapping):
        return {key: settings_without(value, str(key)) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [settings_without(value, name) for value in settings]
    if not isinstance(settings, str):
        return settings
    if is_secret(name):
        hide(settings)
    return settings if name.startswith("spark.") else withheld(settings)


def redacted(text: str) -> str:
    """A text to be shown: without addresses' credentials, values under secret names, and secrets that are known."""
    secrets = _Process.secrets | {value for name, value in os.environ.items() if _is_secret_variable(name, value)}
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _MIN_CHARACTERS:
            text = text.replace(secret, "…")
    text = _USER.sub(lambda match: match[0] if _without_user(match) == match[0] else f"{match[1]}://…@", text)
    text = _GIVEN.sub(lambda match: f"{match[1]}{match[2]}…" if is_secret(match[1]) else match[0], text)
    return _KEY_ID.sub("…", _HEADER.sub(r"\1…", text))


def known() -> Known:
    """What this process knows, for a process that works for it; never to be written."""
    return _Process.secrets, _Process.addresses


def learn(known: Known) -> None:
    """Know what another process knows."""
    _Process.secrets |= known[0]
    _Process.addresses |= known[1]


def _is_secret_variable(name: str, value: str) -> bool:
    return len(value) >= 8 and is_secret(name) and not name.endswith(("_FILE", "_PATH", "CREDENTIALS"))


def _without_user(match: re.Match[str]) -> str:
    scheme = match[1].lower()
    secret = (":" in match[2] or scheme in _HTTP) and scheme not in _NOT_USERS
    return f"{match[1]}://" if secret else match[0]


def _unsigned(match: re.Match[str]) -> str:
    pairs = match[2].split("&")
    names = [pair.partition("=")[0] for pair in pairs]
    if not any(map(is_secret, names)):
        return match[0]
    azure = "sig" in map(str.lower, names)
    kept = [
        pair
        for name, pair in zip(names, pairs, strict=True)
        if not (is_secret(name) or _SIGNED.fullmatch(name) or (azure and _SIGNED_BY_AZURE.fullmatch(name)))
    ]
    return match[1] + (f"?{'&'.join(kept)}" if kept else "")
