"""Attempts at a unit, told by files beside the plan's units: which image an attempt that was killed was decoding.

A process killed for memory, or by a crash in native code, says nothing, and its retry would end the same way. So an
attempt has a file while it lasts. The next one finds it, decodes images one at a time, scores lists one at a time, and
has a file for each meanwhile. An image or a list whose file is found later has ended two processes, and is a reject.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from lakerank.fingerprint import fingerprint
from lakerank.lake.storage import Storage, join
from lakerank.model.inputs import RejectedInput
from lakerank.model.preprocess.pipeline import digest, watched_by
from lakerank.records import RejectReason

_one_image, _one_list = threading.Lock(), threading.Lock()

#: What the file of a list is named with.
_LIST = "list-"


@contextmanager
def attempt(storage: Storage, folder: str, unit: str) -> Iterator[Watch | None]:
    """Score a unit within, or sketch what one index file has; images, and the lists that it names to what this yields,
    are watched if an earlier attempt was killed."""
    folder = join(folder, "attempts")
    names = {name for name in storage.list_names(folder) if name.startswith(f"{unit}.")}
    started = f"{unit}.started"
    watch = Watch(storage, join(folder, unit), names) if started in names else None
    storage.replace(join(folder, started), b"{}")
    try:
        with nullcontext() if watch is None else watched_by(watch.decoding):
            yield watch
    except BaseException:
        if watch is None:  # else the next attempt needs to know of the one that was killed
            storage.delete(join(folder, started))
        raise
    for name in {started, *names}:
        storage.delete(join(folder, name))


@dataclass(frozen=True, slots=True)
class Watch:
    """Names each image while it is decoded, and each list while it is scored, one at a time in this process."""

    storage: Storage
    prefix: str
    names: set[str]

    @contextmanager
    def decoding(self, data: bytes) -> Iterator[None]:
        """Raises RejectedInput: an attempt was killed while it decoded this image."""
        with _one_image, self._named(digest(data), "while the image was decoded", "a smaller image"):
            yield

    @contextmanager
    def scoring(self, query_id: str) -> Iterator[None]:
        """Raises RejectedInput: an attempt was killed while it scored this query's list. Where an image of it had a
        file by then, that one is rejected, and the rest is tried once more under another name."""
        images = sorted(name for name in self.names if _LIST not in name)
        name = f"{_LIST}{fingerprint({'query': query_id, 'images': images})}"
        with _one_list, self._named(name, "while the list was scored", "a shorter list"):
            yield

    @contextmanager
    def _named(self, name: str, when: str, advice: str) -> Iterator[None]:
        address = f"{self.prefix}.{name}"
        # Of another driver at work on the same unit, the file would be gone by now.
        if address.rpartition("/")[2] in self.names and self.storage.exists(address):
            detail = f"{when}: two processes were killed; more memory, or {advice}, helps"
            raise RejectedInput(RejectReason.OUT_OF_MEMORY, detail)
        self.storage.replace(address, b"{}")
        try:
            yield
        finally:
            self.storage.delete(address)
