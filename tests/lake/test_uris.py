"""Names are joined, compared and redacted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakerank.credentials import redacted
from lakerank.lake import is_local, is_table_part, join, local_path, scheme, split_wildcard

ROOTS = st.sampled_from(["out", "/data/lake", "s3://bucket", "s3://bucket/a b", "file:///tmp/x", "memory://", ".", "/"])
PART = st.text(st.characters(exclude_characters="/", exclude_categories=("Cs",)), min_size=1, max_size=8)


@given(ROOTS, st.lists(PART, max_size=4), st.lists(PART, max_size=4))
def test_joining_in_steps_or_at_once_is_the_same(root: str, first: list[str], second: list[str]) -> None:
    assert join(join(root, *first), *second) == join(root, *first, *second)


@given(ROOTS, st.lists(PART, min_size=1, max_size=4))
def test_parts_stand_below_the_root_with_one_slash_between(root: str, parts: list[str]) -> None:
    joined = join(root, *parts)
    assert joined == root.removesuffix("/") + "/" + "/".join(parts)
    assert scheme(joined) == scheme(root)
    assert join(root + "/", *(f"/{part}/" for part in parts)) in (joined, root + "/" + "/".join(parts))


def test_empty_parts_change_nothing() -> None:
    assert join("s3://bucket/lake", "", "a") == "s3://bucket/lake/a"
    assert join("", "a") == "a"
    assert join("/", "a") == "/a"


@pytest.mark.parametrize(
    ("name", "local", "path"),
    [
        ("out/x", True, "out/x"),
        ("/tmp/x y", True, "/tmp/x y"),  # noqa: S108
        ("file:///tmp/x", True, "/tmp/x"),  # noqa: S108
        ("file:/tmp/x", True, "/tmp/x"),  # noqa: S108
        ("FILE:///tmp/x", True, "/tmp/x"),  # noqa: S108
        ("a:b/c", True, "a:b/c"),
        ("s3://bucket/x", False, None),
        ("S3A://bucket/x", False, None),
    ],
)
def test_local_names_are_told_from_others(name: str, local: bool, path: str | None) -> None:
    assert is_local(name) is local
    if path is not None:
        assert str(local_path(name)) == path


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("a/b/*.parquet", ("a/b", "*.parquet")),
        ("a/run_id=*/x/?.parquet", ("a", "run_id=*/x/?.parquet")),
        ("*.parquet", ("", "*.parquet")),
        ("/*/x", ("/", "*/x")),
        ("s3://bucket/[ab]/x", ("s3://bucket", "[ab]/x")),
        ("s3://*/x", ("s3://", "*/x")),
    ],
)
def test_a_pattern_is_split_before_its_first_wildcard(uri: str, expected: tuple[str, str]) -> None:
    assert split_wildcard(uri) == expected


@pytest.mark.parametrize("name", ["a.parquet", "day=1/a.snappy.parquet", "x/y/z.pq", "_lang=de/a.parquet"])
def test_parts_of_a_table(name: str) -> None:
    assert is_table_part(name)


@pytest.mark.parametrize(
    "name", [".a.parquet", "_a.parquet", "_temporary/a.parquet", "x/.y/a.parquet", "a.csv", "parquet"]
)
def test_what_is_no_part_of_a_table(name: str) -> None:
    assert not is_table_part(name)


def test_passwords_are_hidden_and_azure_containers_are_not() -> None:
    assert redacted("sftp://user:pass@host/a") == "sftp://…@host/a"
    assert (
        redacted("abfs://container@account.dfs.core.windows.net/a") == "abfs://container@account.dfs.core.windows.net/a"
    )
    assert redacted("s3://bucket/a:b@c") == "s3://bucket/a:b@c"
