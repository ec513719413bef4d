"""Files are listed, read, created once and replaced in one step, on local files and on S3 alike."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from stores import SERVER

from lakerank.errors import StorageError
from lakerank.ingest.source import open_source
from lakerank.lake.backends import transfers_left
from lakerank.lake.backends.s3 import s3fs_filesystem
from lakerank.lake.formats import resolve
from lakerank.lake.snapshot import TableFile
from lakerank.lake.storage import Storage, StorageOptions, join
from lakerank.lake.tables import parquet_bytes

Together = Callable[[Callable[[int], object], int], list[Any]]

PARQUET = parquet_bytes(pa.table({"x": [1, 2, 3]}), 2)


def listed(storage: Storage, uri: str) -> Sequence[TableFile]:
    return resolve(storage, uri).files


def rows(storage: Storage, uri: str) -> pa.Table:
    with storage.open_parquet(uri) as parquet:
        return parquet.read()


def names(storage: Storage, uri: str, below: str) -> list[str]:
    return [info.uri.removeprefix(below).lstrip("/") for info in listed(storage, uri)]


@pytest.fixture
def tree(storage: Storage, empty_folder: str) -> str:
    """A table with parts at several depths, among things that are no part of it."""
    parts = ("b.parquet", "a.parquet", "day=1/c.parquet", "day=2/deep/d.parquet")
    others = (".hidden.parquet", "_SUCCESS", "_temporary/0/e.parquet", "day=1/.part.tmp", "README.md", "day=1/f.csv")
    for name in parts + others:
        storage.create(join(empty_folder, "table", name), PARQUET)
    storage.create(join(empty_folder, "table2/z.parquet"), PARQUET)
    return join(empty_folder, "table")


def test_a_folder_is_listed_at_every_depth_without_hidden_names(storage: Storage, tree: str) -> None:
    expected = ["a.parquet", "b.parquet", "day=1/c.parquet", "day=2/deep/d.parquet"]
    assert names(storage, tree, tree) == expected
    assert names(storage, tree + "/", tree) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.parquet", ["a.parquet", "b.parquet"]),
        ("day=*/*.parquet", ["day=1/c.parquet"]),
        ("day=*", ["day=1/c.parquet", "day=2/deep/d.parquet"]),
        ("[ab].parquet", ["a.parquet", "b.parquet"]),
        ("?.parquet", ["a.parquet", "b.parquet"]),
        ("day=2/**/*.parquet", ["day=2/deep/d.parquet"]),
        ("*", ["a.parquet", "b.parquet", "day=1/c.parquet", "day=2/deep/d.parquet"]),
    ],
)
def test_a_glob_is_listed(storage: Storage, tree: str, pattern: str, expected: list[str]) -> None:
    assert names(storage, join(tree, pattern), tree) == expected


def test_a_single_file_may_have_any_name(storage: Storage, tree: str) -> None:
    (info,) = listed(storage, join(tree, "README.md"))
    assert (info.uri, info.size) == (join(tree, "README.md"), len(PARQUET))


def test_a_name_with_wildcard_characters_is_taken_literally_when_it_exists(storage: Storage, empty_folder: str) -> None:
    odd = join(empty_folder, "part [1].parquet")
    storage.create(odd, PARQUET)
    assert [info.uri for info in listed(storage, odd)] == [odd]


@pytest.mark.parametrize("name", ["absent", "absent.parquet", "absent/*.parquet", "empty"])
def test_a_table_without_files_is_an_error_that_names_it(storage: Storage, empty_folder: str, name: str) -> None:
    storage.create(join(empty_folder, "empty/notes.txt"), b"")
    with pytest.raises(StorageError, match=r"no Parquet file|no such file or folder") as caught:
        listed(storage, join(empty_folder, name))
    assert join(empty_folder, name) in str(caught.value)


def test_a_version_changes_with_the_content(storage: Storage, empty_folder: str) -> None:
    uri = join(empty_folder, "a.parquet")
    storage.create(uri, b"one")
    before = listed(storage, uri)[0].version
    assert listed(storage, empty_folder)[0].version == before
    storage.replace(uri, b"two")
    assert listed(storage, uri)[0].version != before


def test_names_in_a_folder(storage: Storage, tree: str) -> None:
    assert storage.list_names(tree) == [
        "README.md",
        "_SUCCESS",
        "_temporary",
        "a.parquet",
        "b.parquet",
        "day=1",
        "day=2",
    ]
    assert storage.list_names(join(tree, "absent")) == []


def test_a_listing_sees_what_was_written_since_the_last_one(storage: Storage, empty_folder: str) -> None:
    storage.create(join(empty_folder, "a.parquet"), b"")
    assert storage.list_names(empty_folder) == ["a.parquet"]
    Storage(storage.options).create(join(empty_folder, "b.parquet"), b"")
    assert storage.list_names(empty_folder) == ["a.parquet", "b.parquet"]
    assert len(listed(storage, empty_folder)) == 2


def test_bytes_are_read_back_and_a_missing_file_is_named(storage: Storage, empty_folder: str) -> None:
    uri = join(empty_folder, "deep/er/a.json")
    assert not storage.exists(uri)
    assert storage.create(uri, b"\x00abc")
    assert storage.exists(uri)
    assert storage.read_bytes(uri) == b"\x00abc"
    with pytest.raises(StorageError, match=r"absent\.json: cannot be read \(FileNotFoundError"):
        storage.read_bytes(join(empty_folder, "absent.json"))


def test_create_never_changes_what_is_there_and_replace_does(storage: Storage, empty_folder: str) -> None:
    uri = join(empty_folder, "a.json")
    assert storage.create(uri, b"first")
    assert not storage.create(uri, b"second")
    assert storage.read_bytes(uri) == b"first"
    storage.replace(uri, b"third")
    assert storage.read_bytes(uri) == b"third"


def test_delete_can_be_repeated(storage: Storage, empty_folder: str) -> None:
    uri = join(empty_folder, "a.json")
    storage.create(uri, b"x")
    storage.delete(uri)
    storage.delete(uri)
    assert not storage.exists(uri)
    assert storage.create(uri, b"y")


def test_of_sixteen_writers_one_creates(storage: Storage, empty_folder: str, together: Together) -> None:
    uri = join(empty_folder, "run/manifest.json")
    results = together(lambda number: storage.create(uri, b"%d" % number * 10_000), 16)
    assert sorted(map(str, results)) == ["False"] * 15 + ["True"]
    assert storage.read_bytes(uri) == b"%d" % results.index(True) * 10_000
    assert storage.list_names(join(empty_folder, "run")) == ["manifest.json"]


def test_a_file_is_replaced_only_while_it_is_what_was_seen(storage: Storage, empty_folder: str) -> None:
    uri = join(empty_folder, "deep/current.json")
    assert storage.version(uri) is None
    assert not storage.replace_if(uri, b"x", "0" * 32)
    assert storage.replace_if(uri, b"one", None)
    assert not storage.replace_if(uri, b"other", None)
    seen = storage.version(uri)
    assert storage.replace_if(uri, b"second", seen)
    assert not storage.replace_if(uri, b"third", seen)
    assert storage.read_bytes(uri) == b"second"
    assert storage.list_names(join(empty_folder, "deep")) == ["current.json"]


def test_of_sixteen_writers_that_saw_the_same_one_replaces(
    storage: Storage, empty_folder: str, together: Together
) -> None:
    uri = join(empty_folder, "current.json")
    storage.create(uri, b"old")
    seen = storage.version(uri)
    results = together(lambda number: storage.replace_if(uri, b"%d" % number * 10_000, seen), 16)
    assert sorted(map(str, results)) == ["False"] * 15 + ["True"]
    assert storage.read_bytes(uri) == b"%d" % results.index(True) * 10_000


def test_everything_below_a_folder_is_walked(storage: Storage, tree: str) -> None:
    result = {file.uri.removeprefix(tree + "/"): file for file in storage.walk(tree)}
    assert {".hidden.parquet", "_temporary/0/e.parquet", "day=1/.part.tmp", "day=2/deep/d.parquet"} < set(result)
    assert len(result) == 10
    assert result["a.parquet"].size == len(PARQUET)
    assert abs(result["a.parquet"].written - time.time()) < 60
    assert storage.walk(join(tree, "absent")) == []


def test_a_walk_does_not_leave_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    Storage().create(str(tmp_path / "elsewhere/a.parquet"), PARQUET)
    (tmp_path / "out/linked").symlink_to(tmp_path / "elsewhere")
    assert Storage().walk(str(tmp_path / "out")) == []


def test_a_folder_that_keeps_to_the_protocol_is_writable(storage: Storage, empty_folder: str) -> None:
    storage.check_writable(empty_folder)
    assert storage.walk(empty_folder) == []


@pytest.mark.skipif(SERVER != "moto", reason="a store that checks signatures misses the header that was taken out")
def test_a_store_that_ignores_conditions_is_refused(s3_folder: str, faulty_s3: Any) -> None:
    storage = Storage(StorageOptions(endpoint_url=faulty_s3.endpoint))
    faulty_s3.conditions = False
    with pytest.raises(StorageError, match=r"If-None-Match.*name a store with conditional writes") as caught:
        storage.check_writable(s3_folder)
    assert s3_folder in str(caught.value)
    assert storage.walk(s3_folder) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"file/out/\.lakerank-probe.* cannot be created"):
        Storage().check_writable(str(tmp_path / "file/out"))


def test_of_several_processes_one_creates(tmp_path: Path) -> None:
    script = (
        "import sys, time, pathlib; from lakerank.lake.storage import Storage\n"
        "folder, number = pathlib.Path(sys.argv[1]), sys.argv[2]\n"
        "(folder / f'ready-{number}').touch()\n"
        "while not (folder / 'go').exists(): pass\n"
        "won = [Storage().create(str(folder / f'unit-{i}'), number.encode() * 5000) for i in range(40)]\n"
        "print(sum(won))"
    )
    racers = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(number)], stdout=subprocess.PIPE, text=True)
        for number in range(3)
    ]
    while len(list(tmp_path.glob("ready-*"))) < len(racers):
        assert all(racer.poll() is None for racer in racers)
    (tmp_path / "go").touch()
    wins = [int(racer.communicate()[0]) for racer in racers]
    assert sum(wins) == 40
    contents = {(tmp_path / f"unit-{i}").read_bytes() for i in range(40)}
    assert contents <= {str(number).encode() * 5000 for number in range(3)}
    assert not list(tmp_path.glob(".*"))


def test_a_reader_never_sees_half_of_a_replaced_file(tmp_path: Path, together: Together) -> None:
    storage, uri = Storage(), str(tmp_path / "current.json")
    storage.create(uri, b"0" * 100_000)

    def write_and_read(number: int) -> set[int]:
        seen = set()
        for _ in range(20):
            storage.replace(uri, b"%d" % number * 100_000)
            content = storage.read_bytes(uri)
            seen.add(len(content) if len(set(content)) == 1 else -1)
        return seen

    assert together(write_and_read, 4) == [{100_000}] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["current.json"]


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(StorageError, match="taken: cannot be written"):
        Storage().replace(str(tmp_path / "taken"), b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_local_names_may_be_relative_or_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = Storage()
    storage.create("out/a.parquet", PARQUET)
    assert [info.uri for info in listed(storage, "out")] == ["out/a.parquet"]
    assert [info.uri for info in listed(storage, "*/*.parquet")] == ["out/a.parquet"]
    for uri in (tmp_path.as_uri() + "/out", f"file:{tmp_path}/out"):
        (info,) = listed(storage, uri)
        assert info.uri == uri + "/a.parquet"
        with storage.open_parquet(info.uri) as parquet:
            assert parquet.read().num_rows == 3


def test_linked_folders_are_followed_and_circles_are_not(tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    (tmp_path / "elsewhere").mkdir()
    Storage().create(str(tmp_path / "elsewhere/a.parquet"), PARQUET)
    (tmp_path / "table/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "table")
    result = names(Storage(), str(tmp_path / "table"), str(tmp_path / "table"))
    assert result == ["linked/a.parquet"]


def test_parquet_is_opened_by_range(storage: Storage, empty_folder: str) -> None:
    uri = join(empty_folder, "a.parquet")
    storage.create(uri, PARQUET)
    for streaming in (False, True):
        with storage.open_parquet(uri, streaming) as parquet:
            assert parquet.read_row_group(1).to_pydict() == {"x": [3]}


def test_s3_reads_only_the_row_group_asked_for(s3_storage: Storage, faulty_s3: Any) -> None:
    storage = Storage(StorageOptions(endpoint_url=faulty_s3.endpoint, region="us-east-1"))
    uri = f"s3://lake/{uuid.uuid4().hex}.parquet"
    blobs = pa.table({"image": [os.urandom(200_000) for _ in range(10)], "id": list(range(10))})
    s3_storage.create(uri, parquet_bytes(blobs, 1))
    with storage.open_parquet(uri) as parquet:
        assert parquet.read_row_group(4, columns=["id"]).to_pydict() == {"id": [4]}
    ranges = [value.removeprefix("bytes=").split("-") for _, _, value in faulty_s3.requests if value]
    assert 0 < sum(int(last) - int(first) + 1 for first, last in ranges) < 150_000


def test_what_is_no_parquet_file_is_named(storage: Storage, empty_folder: str) -> None:
    uri = join(empty_folder, "a.parquet")
    storage.create(uri, b"PAR1 not really")
    with pytest.raises(StorageError, match=r"a\.parquet: cannot be opened .*whole Parquet file"):
        rows(storage, uri)
    with pytest.raises(StorageError, match=r"b\.parquet: cannot be opened"):
        rows(storage, join(empty_folder, "b.parquet"))


def test_a_storage_is_small_and_crosses_to_other_processes(storage: Storage, empty_folder: str) -> None:
    storage.create(join(empty_folder, "a.json"), b"x")
    pickled = pickle.dumps(storage)
    assert len(pickled) < 500
    assert pickle.loads(pickled).read_bytes(join(empty_folder, "a.json")) == b"x"  # noqa: S301


def test_s3a_is_s3(s3_storage: Storage) -> None:
    folder = f"s3a://lake/{uuid.uuid4().hex}"
    assert s3_storage.create(join(folder, "a.parquet"), PARQUET)
    (info,) = listed(s3_storage, folder)
    assert info.uri == join(folder, "a.parquet")
    assert rows(s3_storage, info.uri).num_rows == 3


def test_the_standard_aws_environment_is_honoured(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_CA_BUNDLE", "/etc/ssl/certs/ca-certificates.crt")
    uri = f"s3://lake/{uuid.uuid4().hex}.parquet"
    storage = Storage()
    assert storage.create(uri, PARQUET)
    assert rows(storage, uri).num_rows == 3


def test_a_profile_gives_keys_region_and_endpoint_to_both_clients(
    s3_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text(f"[profile night]\nregion = us-east-1\nendpoint_url = {s3_server.endpoint}\n")
    keys = f"aws_access_key_id = {s3_server.access_key}\naws_secret_access_key = {s3_server.secret_key}\n"
    (tmp_path / "credentials").write_text(f"[night]\n{keys}")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    storage = Storage(StorageOptions(profile="night"))
    uri = f"s3://lake/{uuid.uuid4().hex}.parquet"
    assert storage.create(uri, PARQUET)
    assert rows(storage, uri).num_rows == 3


def test_a_missing_bucket_is_named_with_what_to_check(s3_storage: Storage) -> None:
    with pytest.raises(
        StorageError, match=r"s3://no-such-bucket/a\.json: cannot be created .*check the name of the bucket"
    ):
        s3_storage.create("s3://no-such-bucket/a.json", b"x")
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/a.parquet: cannot be opened"):
        rows(s3_storage, "s3://no-such-bucket/a.parquet")


def test_an_endpoint_that_does_not_answer_is_named_and_no_key_is_shown(s3_server: Any) -> None:
    storage = Storage(StorageOptions(endpoint_url="http://127.0.0.1:9", max_attempts=2))
    for action in (storage.read_bytes, partial(listed, storage), partial(rows, storage)):
        with pytest.raises(
            StorageError, match=r"s3://lake/a\.parquet: cannot be .*lake\.storage\.endpoint_url"
        ) as caught:
            action("s3://lake/a.parquet")
        assert s3_server.secret_key not in str(caught.value)
        assert s3_server.access_key not in str(caught.value)


@pytest.mark.skipif(SERVER == "moto", reason="moto checks no keys")
def test_wrong_keys_are_told_from_a_wrong_address(s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-right-one")
    # fsspec would give another test's connection, with the right keys, for the same options
    storage = Storage(StorageOptions(endpoint_url=s3_server.endpoint, max_attempts=2, connect_timeout_s=17))
    for action in (storage.read_bytes, partial(listed, storage), partial(rows, storage)):
        with pytest.raises(StorageError, match=r"s3://lake/a\.parquet: cannot be .*check the credentials") as caught:
            action("s3://lake/a.parquet")
        assert s3_server.access_key not in str(caught.value)
        assert "tries" not in str(caught.value), "the same keys are refused again"


def test_a_public_bucket_is_read_without_keys(s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = f"public-{uuid.uuid4().hex[:8]}"
    client = s3_server.client()
    client.create_bucket(Bucket=bucket, ACL="public-read")
    client.put_object(Bucket=bucket, Key="t/a.parquet", Body=PARQUET, ACL="public-read")
    client.close()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    storage = Storage(StorageOptions(endpoint_url=s3_server.endpoint, anonymous=True, addressing_style="path"))
    (info,) = listed(storage, f"s3://{bucket}/t")
    assert rows(storage, info.uri).num_rows == 3
    assert storage.version(info.uri) == info.version


@pytest.mark.parametrize("fault", [503, "reset", "truncate", "stall"])
def test_what_a_network_does_to_a_request_is_got_over(s3_folder: str, faulty_s3: Any, fault: int | str) -> None:
    storage = Storage(StorageOptions(endpoint_url=faulty_s3.endpoint, request_timeout_s=1))
    uri = join(s3_folder, "a.parquet")
    faulty_s3.stall_s, faulty_s3.methods = 3, frozenset({"PUT", "GET", "HEAD"})
    faulty_s3.faults.extend([fault])
    assert storage.create(uri, PARQUET)
    for read in (storage.read_bytes, partial(listed, storage), storage.version):
        faulty_s3.faults.extend([fault])
        assert read(uri)
    faulty_s3.faults.extend([fault])
    with storage.open_parquet(uri) as parquet:
        faulty_s3.faults.extend([fault])
        assert parquet.read().num_rows == 3
    assert not faulty_s3.faults


def test_a_store_that_drips_is_given_up(s3_storage: Storage, s3_folder: str, faulty_s3: Any) -> None:
    options = StorageOptions(endpoint_url=faulty_s3.endpoint, region="us-east-1", request_timeout_s=0.5)
    storage = Storage(replace(options, min_transfer_rate=64 * 2**20, max_attempts=2))
    uri = join(s3_folder, "a.parquet")
    s3_storage.create(uri, PARQUET)
    faulty_s3.methods = frozenset({"GET"})
    faulty_s3.faults.extend(["drip"])
    assert storage.read_bytes(uri) == PARQUET, "the second time"
    faulty_s3.faults.extend(["drip"])
    with pytest.raises(StorageError, match=r"cannot be opened .TimeoutError: slower than lake\.storage\.min_tr"):
        rows(storage, uri)
    faulty_s3.faults.clear()
    with storage.open_parquet(uri) as parquet:  # its footer comes at once, its rows do not
        faulty_s3.faults.extend(["drip"])
        with pytest.raises(StorageError, match=r"cannot be read .*slower than"):
            list(storage.batches(uri, parquet))
    assert transfers_left()
    faulty_s3.faults.extend(["drip"])
    with storage.open_stream(uri) as stream, pytest.raises(TimeoutError, match="slower than"):
        stream.read()
    for listing in (storage.list_table, storage.list_names):
        faulty_s3.faults.extend(["drip", "drip"])
        with pytest.raises(StorageError, match=r"cannot be listed in 2 tries .TimeoutError: slower than"):
            listing(s3_folder)
    source = open_source(uri, storage.options)
    faulty_s3.faults.extend(["drip"])
    with pytest.raises(TimeoutError, match="slower than"):
        source.read(next(source.files()))
    faulty_s3.faults.extend(["drip"])
    with pytest.raises(TimeoutError, match="slower than"), source.open(next(source.files())) as file:
        file.read()
    faulty_s3.enough.set()
    while transfers_left():
        time.sleep(0.01)


def test_a_busy_server_is_asked_again(faulty_s3: Any) -> None:
    storage = Storage(StorageOptions(endpoint_url=faulty_s3.endpoint, max_attempts=3))
    uri = f"s3://lake/{uuid.uuid4().hex}"
    faulty_s3.faults.extend([503, 500])
    assert storage.create(uri, b"x")
    assert storage.read_bytes(uri) == b"x"


def test_attempts_are_counted(faulty_s3: Any) -> None:
    storage = Storage(StorageOptions(endpoint_url=faulty_s3.endpoint, max_attempts=2))
    uri = f"s3://lake/{uuid.uuid4().hex}"
    faulty_s3.faults.extend([503] * 3)
    with pytest.raises(StorageError, match=r"cannot be created in 2 tries .*raise lake\.storage\.max_attempts"):
        storage.create(uri, b"x")
    assert len(faulty_s3.faults) == 1


def test_a_file_is_ours_when_only_the_answer_was_lost(faulty_s3: Any) -> None:
    storage = Storage(StorageOptions(endpoint_url=faulty_s3.endpoint, max_attempts=3))
    uri = f"s3://lake/{uuid.uuid4().hex}"
    faulty_s3.faults.append("lose the answer")
    assert storage.create(uri, b"mine")
    faulty_s3.faults.append(503)
    assert not storage.create(uri, b"other")
    assert storage.read_bytes(uri) == b"mine"
    seen = storage.version(uri)
    faulty_s3.faults.append("lose the answer")
    assert storage.replace_if(uri, b"mine again", seen)
    faulty_s3.faults.append("lose the answer")
    assert not storage.replace_if(uri, b"other", seen)
    assert storage.read_bytes(uri) == b"mine again"


def test_memory_works_like_the_rest() -> None:
    storage, folder = Storage(), f"memory://{uuid.uuid4().hex}"
    assert storage.list_names(folder) == []
    assert storage.create(join(folder, "t/a.parquet"), PARQUET)
    assert not storage.create(join(folder, "t/a.parquet"), b"")
    (info,) = listed(storage, folder)
    assert info.uri == join(folder, "t/a.parquet")
    assert rows(storage, info.uri).num_rows == 3
    storage.replace(info.uri, b"new")
    assert storage.read_bytes(info.uri) == b"new"
    storage.delete(info.uri)
    storage.delete(info.uri)
    assert not storage.exists(info.uri)


def test_a_store_without_create_only_writes_is_refused() -> None:
    with pytest.raises(StorageError, match=r"sftp:// cannot write a file only where there is none.*lake\.output"):
        Storage().create("sftp://user:password@host/lake/a", b"x")


def test_a_password_in_a_uri_is_not_shown() -> None:
    with pytest.raises(StorageError) as caught:
        Storage().create("sftp://user:password@host/lake/a", b"x")
    assert "password" not in str(caught.value)


def test_an_unknown_scheme_is_a_storage_error() -> None:
    with pytest.raises(StorageError, match="nosuch://x: cannot be listed"):
        listed(Storage(), "nosuch://x")


def test_an_object_that_stands_for_a_folder_is_no_file(s3_storage: Storage) -> None:
    folder = f"s3://lake/{uuid.uuid4().hex}"
    filesystem, key = s3fs_filesystem(s3_storage.options), folder.removeprefix("s3://lake/")
    for name in ("", "x.parquet/", "y.parquet/"):  # as a console writes them; s3fs itself would drop the slash
        filesystem.call_s3("put_object", Bucket="lake", Key=f"{key}/{name}", Body=b"")
    s3_storage.replace(f"{folder}/x.parquet/part.parquet", b"PAR1")
    assert [file.uri for file in listed(s3_storage, folder)] == [f"{folder}/x.parquet/part.parquet"]
    assert [file.uri for file in s3_storage.walk(folder)] == [f"{folder}/x.parquet/part.parquet"]


@pytest.mark.parametrize("name", ["naïve é 日本.parquet", "50%25 %.parquet", "a#b.parquet", "a?b+c&d.parquet"])
def test_names_are_taken_as_they_are(storage: Storage, empty_folder: str, name: str) -> None:
    table = pa.table({"doc_id": ["d"]})
    assert storage.create(uri := join(empty_folder, name), parquet_bytes(table, 1))
    assert [file.uri for file in listed(storage, empty_folder)] == [uri]
    assert storage.version(uri) is not None
    assert rows(storage, uri).to_pydict() == {"doc_id": ["d"]}
