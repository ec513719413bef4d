"""Failures are distinguished, and their messages contain no keys."""

from __future__ import annotations

import errno
import traceback

import pyarrow as pa
import pytest

from lakerank.errors import SchemaError, StorageError
from lakerank.lake.backends import is_transient, storage_errors


def message(uri: str, error: Exception) -> str:
    with pytest.raises(StorageError) as caught, storage_errors(uri, "read"):
        raise error
    return str(caught.value)


def test_a_failure_says_where_what_and_what_to_check() -> None:
    assert message("s3://lake/a", PermissionError("Access Denied\n<xml>")) == (
        "s3://lake/a: cannot be read (PermissionError: Access Denied); check the credentials (environment or "
        "lake.storage.profile; lake.storage.anonymous for public data; in an address of http, which a run does not "
        "keep: --config or --set) and what they may do there"
    )
    assert message("/lake/a", OSError(errno.ENOSPC, "No space left")).endswith(
        "the disk is full: free space, then run the same command again"
    )
    assert message("/lake/a", OSError(errno.EIO, "I/O")).endswith("that its file system has hard links")
    assert "move it away" in message("/lake/a", NotADirectoryError(errno.ENOTDIR, "Not a directory"))
    assert "check that it is a whole Parquet file" in message("/lake/a", pa.ArrowInvalid("bad magic"))
    assert "check the name of the bucket" in message("s3://lake/a", FileNotFoundError("a"))
    assert "no details" in message("s3://lake/a", TimeoutError())


def test_keys_are_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t/value")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "session-t0ken")
    text = message(
        "s3://lake/a", OSError("key AKIAABCDEFGHIJKLMNOP with s3cr3t/value and session-t0ken at http://me:pass@host/")
    )
    assert text.startswith("s3://lake/a: cannot be read (OSError: key … with … and … at http://…@host/)")


def test_what_led_to_a_failure_is_kept_unless_it_shows_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t/value")
    for words, is_kept in (("signed with s3cr3t/value", False), ("reset", True)):
        error = OSError("no answer")
        error.__cause__ = TimeoutError(words)
        with pytest.raises(StorageError) as caught, storage_errors("s3://lake/a", "read"):
            raise error
        shown = "".join(traceback.format_exception(caught.value))
        assert ("no answer\n" in shown, words in shown) == (is_kept, is_kept)


def test_our_own_errors_pass_unchanged() -> None:
    with pytest.raises(SchemaError, match=r"^as it was$"), storage_errors("a", "read"):
        raise SchemaError("as it was")


class NoCredentialsError(Exception):
    """Named as botocore's is."""


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError(),
        ConnectionResetError(),
        OSError(errno.EBUSY, "slow down"),
        OSError(errno.EIO, "?"),
        Exception("?"),
    ],
)
def test_what_may_pass_is_tried_again(error: Exception) -> None:
    assert is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(),
        FileExistsError(),
        PermissionError(),
        ValueError(),
        NoCredentialsError(),
        OSError(errno.ENOSPC, "full"),
        OSError(errno.EINVAL, "bad request"),
        pa.ArrowInvalid("bad magic"),
        StorageError("ours"),
        KeyboardInterrupt(),
    ],
)
def test_what_will_not_pass_is_not(error: BaseException) -> None:
    assert not is_transient(error)


class ClientError(Exception):
    """Shaped as botocore's is."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.response = {"Error": {"Code": code}}


def translated(error: OSError, code: str) -> OSError:
    """As s3fs raises what botocore raised."""
    error.__cause__ = ClientError(code)
    return error


@pytest.mark.parametrize("code", ["IncompleteBody", "BadDigest", "RequestTimeout", "ConditionalRequestConflict"])
def test_what_a_disturbed_connection_did_is_tried_again_whatever_its_number(code: str) -> None:
    assert is_transient(translated(OSError(errno.EINVAL, "bad request"), code))


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError("AWS Error ACCESS_DENIED during HeadObject operation: No response body."), "check the credentials"),
        (OSError("When reading information for key: AWS Error UNKNOWN (HTTP status 403)"), "check the credentials"),
        (NoCredentialsError("Unable to locate credentials"), "check the credentials"),
        (translated(OSError(errno.EREMCHG, "moved"), "PermanentRedirect"), "check lake.storage.region"),
        (OSError("AWS Error UNKNOWN (HTTP status 301)"), "check lake.storage.region"),
    ],
)
def test_refused_keys_and_a_wrong_region_are_not_tried_again_and_say_so(error: Exception, advice: str) -> None:
    assert not is_transient(error)
    assert advice in message("s3://lake/a", error)


def test_tries_are_told_when_there_were_several() -> None:
    for tries, output in ((1, "cannot be read (TimeoutError"), (5, "cannot be read in 5 tries (TimeoutError")):
        with pytest.raises(StorageError) as caught, storage_errors("s3://lake/a", "read", {"attempt_number": tries}):
            raise TimeoutError
        assert output in str(caught.value)
