"""Names made from content: two things with the same fingerprint may stand for each other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any


def content_hash(text: str | bytes | None, image: bytes | None) -> str:
    """Hash of what a query or document holds, 32 hex digits. None and "" differ; text and image cannot be confused.

    Text may come as the bytes that are stored, which need not be UTF-8.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in (text.encode() if isinstance(text, str) else text, image):
        digest.update(b"-" if part is None else b"%d:" % len(part))
        digest.update(part or b"")
    return digest.hexdigest()


def fingerprint(parts: Mapping[str, Any], length: int = 16) -> str:
    """Hash of JSON-able settings, `length` hex digits, whatever the order of the keys."""
    encoded = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode()
    return hashlib.blake2b(encoded, digest_size=length // 2).hexdigest()


def sequence_hash(lines: Iterable[tuple[str, ...]]) -> str:
    """Hash of a sequence of string tuples, 32 hex digits; lengths are hashed, so that no two sequences run together."""
    digest = hashlib.blake2b(digest_size=16)
    for line in lines:
        for field in line:
            encoded = field.encode()
            digest.update(b"%d:" % len(encoded))
            digest.update(encoded)
        digest.update(b"\n")
    return digest.hexdigest()
