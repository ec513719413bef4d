"""What the storage backends share: records of listings; failures, which of them are retried, and advice on each."""

from __future__ import annotations

import errno
import io
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Thread
from threading import enumerate as enumerate_threads
from typing import Any, TypeVar

import pyarrow as pa

from lakerank.credentials import redacted
from lakerank.errors import LakerankError, StorageError
from lakerank.lake import ICEBERG, is_local

T = TypeVar("T")

#: What a listing takes at most, for its time: some 50,000 names at the least rate, ten millions at a usual one.
LISTING_BYTES = 16 * 2**20

#: Name of the threads of transfers.
_TRANSFER = "transfer"


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file's URI, size in bytes, and version (ETag or modification time), which changes when its content does."""

    uri: str
    size: int
    version: str


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file in a full listing: URI, size in bytes, and modification time (Unix time)."""

    uri: str
    size: int
    written: float


_FILE_FAULTS = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
_PERMANENT = (*_FILE_FAULTS, ImportError, NotImplementedError, TypeError, ValueError, LakerankError)

#: botocore's names for faults of the set-up; it is not imported for them, since it is not always installed.
_CREDENTIAL_FAULTS = re.compile(
    "NoCredentialsError|PartialCredentialsError|CredentialRetrievalError|ProfileNotFound|TokenRetrievalError|"
    "SSOTokenLoadError|UnauthorizedSSOTokenError"
)
_PERMANENT_ERRNO = frozenset(
    {errno.EINVAL, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG, errno.ENOSYS, errno.EMLINK}
)
#: S3's codes for a request damaged in transit. s3fs gives some of them errno 22, which is permanent.
_TRANSIENT_CODES = frozenset(
    {"IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch", "RequestTimeout", "ConditionalRequestConflict"}
)
#: How clients report refused keys and a wrong region; pyarrow only in the message.
_REFUSED = re.compile(
    r"ACCESS_?DENIED|INVALID_?ACCESS_?KEY_?ID|SIGNATURE_?DOES_?NOT_?MATCH|EXPIRED_?TOKEN|INVALID_?CLIENT_?TOKEN|"
    r"status(?: code)?:? 40[13]\b|Forbidden",
    re.IGNORECASE,
)
_WRONG_REGION = re.compile(
    r"PermanentRedirect|AuthorizationHeaderMalformed|IllegalLocationConstraint|status(?: code)?:? 301"
)
_MESSAGE_LENGTH = 300

#: What to do about a fault of a local file system.
_LOCAL_ADVICE = {
    errno.ENOTDIR: "a file is where a folder is needed: move it away, or name another folder",
    errno.EISDIR: "a folder is where a file is needed: move it away, or name another file",
    errno.EACCES: "check who may read and write it",
    errno.EPERM: "check who may read and write it",
    errno.EROFS: "the file system is read-only: name another folder",
    errno.ENOSPC: "the disk is full: free space, then run the same command again",
    errno.EDQUOT: "the quota is used up: free space, then run the same command again",
    errno.ENAMETOOLONG: "use shorter names",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENOTSUP: "the file system has no hard links: name a folder on another",
}

#: How Arrow's readers report a file that opens but whose pages do not match its footer.
_DAMAGED = re.compile(r"thrift|end of (?:stream|file)|corrupt|decompress|checksum", re.IGNORECASE)


def is_transient(error: BaseException) -> bool:
    """Whether the same request may well succeed a moment later."""
    if _code(error) in _TRANSIENT_CODES:
        return True
    if isinstance(error, _PERMANENT) or is_refusal(error) or _WRONG_REGION.search(f"{_code(error)} {error}"):
        return False
    return isinstance(error, Exception) and getattr(error, "errno", None) not in _PERMANENT_ERRNO


def is_broken_off(error: BaseException) -> bool:
    """Whether the bulk client got half of an answer: all other transient failures it tries again itself."""
    return "AWS Error INTERNAL_FAILURE" in str(error)


def within(seconds: float, transfer: Callable[[], T]) -> T:
    """What a transfer returns. Clients only notice that nothing comes, not that it comes a byte a second.

    Raises:
        TimeoutError: it takes longer. Its thread is left behind.
    """
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(transfer())
        except BaseException as error:
            result.set_exception(error)

    Thread(target=run, name=_TRANSFER, daemon=True).start()
    wait([result], seconds)
    if not result.done():
        raise TimeoutError(f"slower than lake.storage.min_transfer_rate, after {seconds:.0f} s")
    return result.result()


class TimedFile(io.RawIOBase):
    """A file in a store of which each read is a transfer of so many bytes: TimeoutError where it is too slow."""

    def __init__(self, source: Any, transfer: Callable[[int, Callable[[], bytes]], bytes]) -> None:
        self._source, self._transfer = source, transfer

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._source.seekable())

    def tell(self) -> int:
        return int(self._source.tell())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._source.seek(offset, whence))

    def readinto(self, buffer: Any) -> int:
        data = self._transfer(len(buffer), partial(self._source.read, len(buffer)))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._source.close()
        super().close()


def transfers_left() -> bool:
    """Whether a transfer that was too slow goes on."""
    return any(thread.name == _TRANSFER for thread in enumerate_threads())


@contextmanager
def storage_errors(uri: str, action: str, statistics: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Translate what a library raises inside into a StorageError; our own errors pass.

    Args:
        statistics: tenacity's, when the action was retried.

    Raises:
        StorageError: names the URI, the action, the cause and what to check; holds no credentials, and comes without
            the library's own error where that would show some.
    """
    try:
        yield
    except LakerankError:
        raise
    except Exception as error:
        tries = (statistics or {}).get("attempt_number", 1)
        what = f"cannot be {action}" + (f" in {tries} tries" if tries > 1 else "")
        raise StorageError(
            f"{redacted(uri)}: {what} ({type(error).__name__}: {_message(error)}); {_advice(uri, error)}"
        ) from (None if _shows_secrets(error) else error)


def _shows_secrets(error: BaseException) -> bool:
    """Whether the message of an error, or of what led to it, has credentials: Python and Spark print them all."""
    chain: list[str] = []
    following: BaseException | None = error
    while following is not None:
        chain.append(str(following))
        following = following.__cause__ or following.__context__
    return any(redacted(message) != message for message in chain)


def _message(error: BaseException) -> str:
    """The first line of an error's message, without keys."""
    return redacted(next(iter(str(error).splitlines()), "").strip() or "no details")[:_MESSAGE_LENGTH]


def _advice(uri: str, error: BaseException) -> str:
    if uri.startswith(ICEBERG):
        return "check the catalog's settings (.pyiceberg.yaml, PYICEBERG_CATALOG__NAME__…) and what they may read"
    if isinstance(error, pa.ArrowInvalid) or (type(error) is OSError and _DAMAGED.search(str(error))):
        return "check that it is a whole Parquet file (`lakerank ingest` makes tables of other files)"
    if isinstance(error, pa.ArrowNotImplementedError):
        return "write the column with a type that all readers of Parquet know, such as BIGINT or STRING"
    if isinstance(error, FileNotFoundError) and not is_refusal(error):
        return "check the name" if is_local(uri) else "check the name of the bucket and of the file"
    if is_local(uri):
        number = error.errno if isinstance(error, OSError) else None
        return _LOCAL_ADVICE.get(number or 0, "check the folder's permissions and that its file system has hard links")
    if is_refusal(error):
        return (
            "check the credentials (environment or lake.storage.profile; lake.storage.anonymous for public data; in an "
            "address of http, which a run does not keep: --config or --set) and what they may do there"
        )
    if _WRONG_REGION.search(f"{_code(error)} {error}"):
        return "check lake.storage.region and lake.storage.endpoint_url: the bucket is in another region"
    return (
        "check lake.storage.endpoint_url, lake.storage.region and the network; for a store that is busy or slow, raise "
        "lake.storage.max_attempts and lake.storage.request_timeout_s"
    )


def _code(error: BaseException) -> str:
    """S3's error code, as botocore passes it on; "" when there is none."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def is_refusal(error: BaseException) -> bool:
    """Whether keys are missing, wrong or not enough."""
    status = getattr(error, "status", None) or getattr(error.__cause__, "status", None)  # aiohttp's, fsspec's of http
    refused = isinstance(error, PermissionError) or bool(_CREDENTIAL_FAULTS.fullmatch(type(error).__name__))
    refused = refused or status in (401, 403)
    return refused or (isinstance(error, OSError) and _REFUSED.search(str(error)) is not None)
