"""Clients of S3 and compatible stores: one set of options, two clients.

pyarrow's own client reads bulk columns; s3fs lists, and reads and writes small files (it has conditional writes).
Measured: 5,000 blobs of 200 KB by row group take 3.4 s through pyarrow and 10 s through s3fs without a cache.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from lakerank.credentials import StorageOptions, complete
from lakerank.errors import requires


@dataclass(frozen=True, slots=True)
class _Account:
    """Resolved endpoint, region and keys; its repr leaves out what may be secret."""

    endpoint_url: str | None = field(repr=False)
    region: str | None
    keys: tuple[str, str, str | None] | None = field(repr=False)


def s3fs_filesystem(options: StorageOptions) -> Any:
    """An s3fs filesystem without caches. fsspec keeps one a process for the same arguments.

    Raises:
        DependencyError: s3fs is not installed.
    """
    with requires("s3", "s3:// needs s3fs"):
        import s3fs
    account = _account(options)
    filesystem = s3fs.S3FileSystem(
        anon=options.anonymous,
        endpoint_url=account.endpoint_url,
        profile=options.profile,
        use_listings_cache=False,  # other processes write here
        default_cache_type="none",
        default_fill_cache=False,
        client_kwargs={"region_name": account.region} if account.region else {},
        config_kwargs={
            "connect_timeout": options.connect_timeout_s,
            "read_timeout": options.request_timeout_s,
            "retries": {"total_max_attempts": 1},
            "s3": {"addressing_style": options.addressing_style},
        },
    )
    filesystem.retries = 1  # `Storage` counts the attempts; three layers of retries would multiply
    return filesystem


def arrow_filesystem(options: StorageOptions, bucket: str) -> Any:
    """A pyarrow S3 filesystem for a bucket, one a process and account."""
    account = _account(options)
    if account.region is None and account.endpoint_url is None:
        account = replace(account, region=_bucket_region(bucket))
    return _arrow_filesystem(options, account, os.getpid())


def delta_options(options: StorageOptions) -> dict[str, str]:
    """The same service for deltalake, whose client reads the rest from the environment."""
    account = _account(options)
    given = {
        "AWS_ENDPOINT_URL": account.endpoint_url,
        "AWS_REGION": account.region,
        "AWS_SKIP_SIGNATURE": "true" if options.anonymous else None,
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true" if options.addressing_style == "virtual" else None,
        "AWS_ALLOW_HTTP": "true" if (account.endpoint_url or "").startswith("http://") else None,
    }
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    given |= dict(zip(names, account.keys or (), strict=False))
    return {name: value for name, value in given.items() if value is not None}


@lru_cache(maxsize=16)
def _arrow_filesystem(options: StorageOptions, account: _Account, _process: int) -> Any:
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    settings: dict[str, Any] = {
        "anonymous": options.anonymous,
        "region": account.region,
        "connect_timeout": options.connect_timeout_s,
        "request_timeout": options.request_timeout_s,
        "retry_strategy": AwsStandardS3RetryStrategy(max_attempts=options.max_attempts),
        "force_virtual_addressing": options.addressing_style == "virtual",
    }
    if account.endpoint_url:
        endpoint = urlsplit(account.endpoint_url)
        settings |= {"scheme": endpoint.scheme, "endpoint_override": endpoint.netloc + endpoint.path.rstrip("/")}
    if account.keys:
        settings |= dict(zip(("access_key", "secret_key", "session_token"), account.keys, strict=True))
    if bundle := os.environ.get("AWS_CA_BUNDLE"):  # botocore reads it, pyarrow does not
        settings["tls_ca_file_path"] = bundle
    return S3FileSystem(**settings)


def _account(options: StorageOptions) -> _Account:
    """Options first, then the environment, then the profile, so that both clients use the same service."""
    session = _session(options.profile, os.getpid()) if options.profile else None
    settings = session.get_scoped_config() if session else {}
    environment = os.environ.get
    endpoint = environment("AWS_ENDPOINT_URL_S3") or environment("AWS_ENDPOINT_URL") or settings.get("endpoint_url")
    region = environment("AWS_REGION") or environment("AWS_DEFAULT_REGION") or settings.get("region")
    given = complete(options.endpoint_url) if options.endpoint_url else None
    return _Account(given or endpoint, options.region or region, _keys(session))


def _keys(session: Any) -> tuple[str, str, str | None] | None:
    """A profile's current keys: temporary ones change, and then need a new filesystem."""
    credentials = session.get_credentials() if session else None
    if credentials is None:
        return None  # pyarrow then looks where AWS's own tools look: environment, default profile, instance role
    frozen = credentials.get_frozen_credentials()
    return frozen.access_key, frozen.secret_key, frozen.token


@lru_cache(maxsize=4)
def _session(profile: str, _process: int) -> Any:
    from botocore.session import Session

    return Session(profile=profile)


@lru_cache(maxsize=64)
def _bucket_region(bucket: str) -> str | None:
    """A bucket's region, cached: AWS answers a request in the wrong region with an error."""
    from pyarrow.fs import resolve_s3_region

    try:
        return str(resolve_s3_region(bucket))
    except OSError:
        return None  # the request that follows fails too, with the reason
