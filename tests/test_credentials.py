"""Credentials in addresses: which are taken out, what is reached with them, and what is shown."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from string import ascii_letters, digits
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lakerank.credentials import complete, is_secret, redacted, settings_without, withheld, without_credentials
from lakerank.lake.storage import Storage

SIGNED_BY_AWS = "X-Amz-Algorithm=AWS4&X-Amz-Credential=AKIAABCDEFGHIJKLMNOP%2F1&X-Amz-Date=2&X-Amz-Signature=5ec2e7"


@pytest.mark.parametrize(
    ("address", "clean"),
    [
        ("https://u:5ec2e7@host/a.parquet", "https://host/a.parquet"),
        ("https://5ec2e7@host/a", "https://host/a"),
        ("sftp://u:5ec2e7@host:22/a", "sftp://host:22/a"),
        ("ftp://u:5ec/2e7@host/a", "ftp://host/a"),
        ("ftp://u:5ec@2e7@host/a", "ftp://host/a"),
        (f"https://b.s3.amazonaws.com/a.parquet?{SIGNED_BY_AWS}", "https://b.s3.amazonaws.com/a.parquet"),
        (
            "https://a.blob.core.windows.net/c/x?sv=2024&se=3&sp=r&version=7&sig=5ec%2B2e7",
            "https://a.blob.core.windows.net/c/x?version=7",
        ),
        ("https://host/get?file=documents&access_token=5ec2e7", "https://host/get?file=documents"),
        ("https://host/a?AccountKey=5ec2e7", "https://host/a"),
        ("zip://a.parquet::https://u:5ec2e7@host/a.zip", "zip://a.parquet::https://host/a.zip"),
    ],
)
def test_an_address_is_stored_without_and_reached_with_credentials(address: str, clean: str) -> None:
    assert withheld(address) == clean
    assert complete(clean) == address
    (secret,) = re.findall("5ec.*2e7", address)
    shown = redacted(f"GET {address!r} failed: {secret}, {unquote(secret)}")
    assert not any(form in shown for form in (secret, unquote(secret), "AKIAABC"))


@pytest.mark.parametrize(
    "address",
    [
        "abfs://container@account.dfs.core.windows.net/a", "sftp://user@host/a", "s3://bucket/a:b@c", "s3://b/part-?.pq",
        "https://host:8080/a@b", "https://[::1]:8080/a@b", "/a/b:c@d", "github://org:repository@main/a",
        "https://host/get?page=2&sort=se", "hdfs://name-node:8020/a=b",
    ],
)  # fmt: skip
def test_other_addresses_stay(address: str) -> None:
    assert withheld(address) == address == redacted(address)


@pytest.mark.parametrize(
    ("given", "below"),
    [
        ("https://u:pass@wild/t/*.parquet?token=5ec2e7", "/t/b.parquet"),
        ("https://u:pass@folder/t?token=5ec2e7", "/t/b.parquet"),
        ("https://u:pass@folder/t/?token=5ec2e7", "/t/c/b.parquet"),
    ],
)
def test_what_is_below_a_folder_or_pattern_is_reached_with_its_credentials(given: str, below: str) -> None:
    host = withheld(given).split("/")[2]
    assert complete(f"https://{host}{below}") == f"https://u:pass@{host}{below}?token=5ec2e7"
    assert complete(f"https://{host}/other") == f"https://{host}/other"


SECRET = st.text(ascii_letters + digits + "-_.~!$*+%", min_size=8)


@given(SECRET, st.sampled_from(["u:{}@host/a", "host/a?sig={}", "host/a?x=1&Signature={}", "host/a?api_key={}&y=2"]))
@example("x" * 8, "u:{}@host/a")
def test_no_secret_is_left_in_an_address_or_shown(secret: str, form: str) -> None:
    address = "https://" + form.format(secret)
    assert secret not in without_credentials(address)
    assert without_credentials(without_credentials(address)) == without_credentials(address)
    assert secret not in redacted(f"cannot open {address}: gone").replace("https", "").replace("cannot open", "")


def test_secret_names_and_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("spark.hadoop.fs.s3a.secret.key", "fs.azure.account.key.x", "AWS_SESSION_TOKEN", "oauthToken", "sig"):
        assert is_secret(name)
    for name in ("scoring.unit_tokens", "tokenizer", "design", "path", "model.path", "spark.sql.keyring", "PWD"):
        assert not is_secret(name)
    monkeypatch.setenv("SOME_PASSWORD", "hunter2hunter2")
    assert redacted("hunter2hunter2 --set spark.x.secret.key=abc 'token': 'abcd' k=v") == (
        "… --set spark.x.secret.key=… 'token': '…' k=v"
    )
    assert redacted("Authorization: Basic dTpwYXNz") == "Authorization: Basic …"


def test_settings_keep_sparks_properties_and_hide_them() -> None:
    settings = {"lake": {"documents": "https://u:pa55word@h/a", "n": 3}, "conf": {"spark.a.secret": "0ther5ecret"}}
    clean = settings_without(settings)
    assert clean == {"lake": {"documents": "https://h/a", "n": 3}, "conf": {"spark.a.secret": "0ther5ecret"}}
    assert redacted("pa55word 0ther5ecret") == "… …"


def test_a_worker_reaches_what_its_driver_can() -> None:
    withheld("https://u:c1assified@worker-host/a")
    script = (
        "import pickle, sys; pickle.loads(sys.stdin.buffer.read())\n"
        "from lakerank.credentials import complete, redacted\n"
        "print(complete('https://worker-host/a/b'), redacted('c1assified'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=pickle.dumps(Storage()), capture_output=True, check=True
    )
    assert done.stdout.decode() == "https://u:c1assified@worker-host/a/b …\n"
    assert b"c1assified" not in repr(Storage().options).encode()
