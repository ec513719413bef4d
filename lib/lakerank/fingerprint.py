"""Names derived from content: two things with the same fingerprint are interchangeable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt


def content_hash(text: str | bytes | None, *images: bytes | None) -> str:
    """Hash of a query's or document's content, 32 hex digits. None and "" differ; text and image cannot be confused.

    Text may be given as stored bytes, which need not be UTF-8. No image and None are the same.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in (text.encode() if isinstance(text, str) else text, *(images or (None,))):
        digest.update(b"-" if part is None else b"%d:" % len(part))
        digest.update(part or b"")
    return digest.hexdigest()


def fingerprint(parts: Mapping[str, Any], length: int = 16) -> str:
    """Hash of JSON-able settings, `length` hex digits, whatever the order of the keys."""
    encoded = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode()
    return hashlib.blake2b(encoded, digest_size=length // 2).hexdigest()


def sequence_hash(lines: Iterable[tuple[str, ...]]) -> str:
    """Hash of a sequence of string tuples, 32 hex digits; lengths are hashed too, so that no two sequences collide."""
    digest = hashlib.blake2b(digest_size=16)
    for line in lines:
        for field in line:
            encoded = field.encode()
            digest.update(b"%d:" % len(encoded))
            digest.update(encoded)
        digest.update(b"\n")
    return digest.hexdigest()


def splitmix64(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): every input bit reaches every output bit."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)), dtype=np.uint64)
