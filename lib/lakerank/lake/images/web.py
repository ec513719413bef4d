"""Images behind URLs: of hosts that are allowed by name, redirects included, and of a bounded size."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Collection
from typing import IO
from urllib.parse import urlsplit
from urllib.request import Request

from lakerank.credentials import redacted
from lakerank.errors import ConfigError

MAX_IMAGE_BYTES = 64 * 2**20
TIMEOUT_S = 20.0


def url_fault(url: str, allowed_hosts: Collection[str]) -> str | None:
    """Why a URL may not be fetched, or None where it may."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").lower()
    except ValueError as error:
        return f"not a URL: {error}"
    if parts.scheme.lower() not in ("http", "https"):
        return f"scheme {parts.scheme!r}: only http and https are fetched"
    if host not in {allowed.lower() for allowed in allowed_hosts}:
        return f"host {host!r} is not allowed; allow it by name, or send the image itself"
    return None


class _SameRules(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to where a request might have gone in the first place."""

    def __init__(self, allowed_hosts: Collection[str]) -> None:
        self._allowed_hosts = allowed_hosts

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> Request | None:
        if fault := url_fault(newurl, self._allowed_hosts):
            raise urllib.error.HTTPError(req.full_url, code, f"redirected: {fault}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(
    url: str, allowed_hosts: Collection[str], max_bytes: int = MAX_IMAGE_BYTES, timeout_s: float = TIMEOUT_S
) -> bytes:
    """The bytes behind a URL. `timeout_s` bounds each wait for the server, not the whole.

    Raises ConfigError: the host is not allowed, does not answer well, or sends more than `max_bytes`.
    """
    if fault := url_fault(url, allowed_hosts):
        raise ConfigError([f"{redacted(url)}: {fault}"])
    opener = urllib.request.build_opener(_SameRules(allowed_hosts))
    try:
        with opener.open(url, timeout=timeout_s) as response:
            data: bytes = response.read(max_bytes + 1)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise ConfigError([f"{redacted(url)}: cannot be fetched: {redacted(str(error))}"]) from None
    if len(data) > max_bytes:
        raise ConfigError([f"{redacted(url)}: more than {max_bytes} bytes"])
    return data
