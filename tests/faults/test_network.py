"""A store that answers one request in twenty with an error, a reset, a stall or half a body: the job gets over it."""

from __future__ import annotations

import pytest
from faulty_s3 import FAULTS
from stores import SERVER

pytestmark = [pytest.mark.spark, pytest.mark.nightly, *([pytest.mark.full] if SERVER == "moto" else [])]


def test_a_bad_network_before_the_store_changes_nothing(s3_deployment, s3_server, faulty_s3, undisturbed):
    faulty_s3.every, faulty_s3.stall_s = 20, 6.0
    options = {"endpoint_url": faulty_s3.endpoint, "region": "us-east-1", "request_timeout_s": 2}
    driver = s3_deployment.start(environment=s3_server.environment(), storage=options)
    assert driver.wait() == 0, driver.words
    assert driver.summary["pairs"] == 240
    s3_deployment.check_published(undisturbed)
    assert set(faulty_s3.seen) == set(FAULTS), "each kind of fault was met"
    assert sum(faulty_s3.seen.values()) >= len(faulty_s3.requests) // 25
