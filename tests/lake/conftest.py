"""Every lake test runs on both local files and S3."""

from __future__ import annotations

import pytest

from lakerank.lake.storage import Storage


@pytest.fixture
def empty_folder(store: tuple[Storage, str]) -> str:
    return store[1]


@pytest.fixture
def storage(store: tuple[Storage, str]) -> Storage:
    return store[0]
