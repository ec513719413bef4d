"""Reads images by their addresses: those that are allowed, up to a size; a PDF file's page as ingestion draws it."""

from __future__ import annotations

import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from lakerank.credentials import redacted
from lakerank.errors import ConfigError, SchemaError, StorageError, requires
from lakerank.fingerprint import content_hash
from lakerank.lake import is_local, join, local_path, scheme
from lakerank.lake.backends import within
from lakerank.lake.images.pdf import PAGE_ERRORS, PAGE_PIXELS, flatten, page_image
from lakerank.lake.images.web import fetch
from lakerank.lake.storage import Storage
from lakerank.records import RejectReason

T = TypeVar("T")
R = TypeVar("R")

#: Images that are fetched at once for one task.
FETCHES = 8

#: Stores whose addresses need no root: a job reads there what its credentials may.
_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})

#: Size of an image whose transfer has its time; larger ones have as much.
_TIMED_BYTES = 4 * 2**20

#: Larger images at addresses are not shown.
_SHOWN_BYTES = 64 * 2**20

_PAGE = re.compile(r"#page=([1-9]\d{0,6})$")
_DETAIL_LENGTH = 300

#: PDFium is for one thread at a time.
_pdfium = threading.Lock()


class UnreadableImage(Exception):
    """An image's address gives no image: the reject of its document. `detail` holds no credentials."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason, self.detail = reason, redacted(detail)[:_DETAIL_LENGTH]


class ImageFiles:
    """Images of a storage, each of at most `max_bytes`; threads may share it.

    The last PDF file is kept, for its pages mostly are one after another.
    """

    def __init__(self, storage: Storage, max_bytes: int) -> None:
        self._storage, self._max_bytes = storage, max_bytes
        self._pdf = ("", b"")

    def images(self, items: Sequence[bytes | str]) -> tuple[bytes, ...]:
        """A document's images, those read that are addresses. Raises UnreadableImage: of several, it says which."""
        images = []
        for number, item in enumerate(items, start=1):
            try:
                images.append(self.read(item) if isinstance(item, str) else item)
            except UnreadableImage as fault:
                which = f"image {number}: " if len(items) > 1 else ""
                raise UnreadableImage(fault.reason, which + fault.detail) from fault
        return tuple(images)

    def read(self, address: str) -> bytes:
        """The encoded image at an address; of `….pdf#page=7` the page.

        Raises:
            UnreadableImage: nothing is there, or it may not be read, or is too large; or a PDF file without the page.
            DependencyError: a library for this kind of address is not installed.
        """
        page = _PAGE.search(address)
        if page is None:
            return self._file(address)
        place = address[: page.start()]
        with _pdfium:
            if self._pdf[0] != place:
                self._pdf = (place, self._file(place))
            return _page(place, self._pdf[1], int(page[1]))

    def _file(self, address: str) -> bytes:
        options = self._storage.options
        try:
            if scheme(address) in ("http", "https"):
                read = partial(fetch, address, self._storage.image_hosts, self._max_bytes)
                return within(options.transfer_s(_TIMED_BYTES), read)
            data = self._storage.read_bytes(self._allowed(address), self._max_bytes + 1)
        except (StorageError, ConfigError) as error:
            raise UnreadableImage(RejectReason.IMAGE_UNREACHABLE, str(error)) from None
        except (OSError, ValueError) as error:
            raise _unreachable(address, f"{type(error).__name__}: {error}") from None
        if len(data) > self._max_bytes:
            raise _unreachable(address, f"over {self._max_bytes} bytes (scoring.max_source_bytes)")
        return data

    def _allowed(self, address: str) -> str:
        """Where an image is read, links resolved. Raises UnreadableImage: its address is not allowed, or no file's."""
        roots = self._storage.image_roots
        if scheme(address) in _STORES:
            return address
        if roots and not scheme(address) and not address.startswith(("/", "~")):
            address = join(roots[0], address)
        if not is_local(address):
            below = any(address.startswith(join(root, "/").rstrip("/") + "/") for root in roots)
            if not below or ".." in address.split("/"):
                raise _unreachable(address, "is below none of lake.image_roots")
            return address
        path = Path(os.path.realpath(local_path(address)))
        if not any(path.is_relative_to(os.path.realpath(local_path(root))) for root in roots if is_local(root)):
            raise _unreachable(address, "is below none of lake.image_roots, links resolved")
        if path.exists() and not path.is_file():
            raise _unreachable(address, "is a folder, a pipe or a device, not a file")
        return str(path)


def _unreachable(address: str, why: str) -> UnreadableImage:
    return UnreadableImage(RejectReason.IMAGE_UNREACHABLE, f"{redacted(address)}: {why}")


def _page(place: str, content: bytes, number: int) -> bytes:
    """A page of a PDF file, counted from 1, encoded."""
    with requires("ingest", "pages of PDF files need pypdfium2"):
        import pypdfium2
    try:
        with closing(pypdfium2.PdfDocument(content)) as document:
            if number > len(document):
                raise _unreachable(place, f"has {len(document)} pages, and no page {number}")
            if document.init_forms():
                flatten(document, number)
            with closing(document[number - 1]) as page:
                return page_image(page, PAGE_PIXELS)
    except PAGE_ERRORS as error:
        detail = f"{redacted(place)}, page {number}: {error}"
        raise UnreadableImage(RejectReason.IMAGE_UNDECODABLE, detail) from error


def row_images(row: Mapping[str, Any]) -> tuple[bytes | str, ...]:
    """The images of a row of documents or queries, in order: bytes, or addresses. What is stored comes before what an
    address names; a null among several is an empty file.

    Raises SchemaError: the row has `images`, and an `image` that is not the first of them.
    """
    images, image, address = tuple(map(_item, row.get("images") or ())), row.get("image"), row.get("image_uri")
    if images and image is not None and image != images[0]:
        identifier = row.get("doc_id")
        fault = f"document {identifier!r} has an image and images, and it is not said which count"
        raise SchemaError(f"{fault}; leave one of the columns out of the table, or null in such rows")
    return images or ((image,) if image is not None else (address,) if address else ())


def first_image(storage: Storage, row: Mapping[str, Any]) -> bytes | None:
    """The first image of a row, for people; None where it has none that can be read."""
    try:
        return next(iter(ImageFiles(storage, _SHOWN_BYTES).images(row_images(row)[:1])), None)
    except UnreadableImage:
        return None


def _item(item: Any) -> bytes | str:
    """One of several images, which may be a struct of bytes and path."""
    if isinstance(item, Mapping):
        item = item["path"] if item["bytes"] is None else item["bytes"]
    return b"" if item is None else item


def address_hash(text: bytes | None, items: Sequence[bytes | str]) -> str:
    """Hash of a document by its images' addresses, where they could not be read."""
    return content_hash(text, *(f"address {item}".encode() if isinstance(item, str) else item for item in items))


def read_ahead(items: Iterable[T], needs: Callable[[T], bool], read: Callable[[T], R]) -> Iterator[tuple[T, R]]:
    """Each item with what is read for it, in order; FETCHES at once, in threads, where an item `needs` that."""
    pool = ThreadPoolExecutor(FETCHES, "images")
    pending: deque[tuple[T, Future[R]]] = deque()
    try:
        for item in items:
            if not pending and not needs(item):
                yield item, read(item)
                continue
            pending.append((item, pool.submit(read, item)))
            if len(pending) > FETCHES or pending[0][1].done():
                first, future = pending.popleft()
                yield first, future.result()
        for first, future in pending:
            yield first, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
