"""Config to records: every setting reaches the record that it is for."""

from __future__ import annotations

from typing import Any

import pytest

from lakerank.cli import resolve
from lakerank.config import resolve_config
from lakerank.lake.storage import StorageOptions
from lakerank.limits import Limits, LogitScale
from lakerank.model.routed import RoutedSpec
from lakerank.model.spec import CheckpointSpec, RuntimeOptions

CHECKPOINT = {
    "path": "hub/text", "revision": "a1", "adapter": "hub/adapter", "adapter_revision": "b2", "family": "bge-reranker",
    "max_length": 100, "dtype": "float16",
}  # fmt: skip
LIMITS = {
    "max_length": 900, "max_query_length": 100, "min_pixels": 4000, "max_pixels": 5000, "max_source_pixels": 6000,
    "max_source_bytes": 7000,
}  # fmt: skip
OPTIONS = {"host_threads": 3, "device_threads": 4, "reproducible": False}
STORAGE = {
    "endpoint_url": "http://store", "region": "north", "profile": "me", "anonymous": True, "addressing_style": "path",
    "connect_timeout_s": 1.5, "request_timeout_s": 2.5, "max_attempts": 7,
}  # fmt: skip
LAKE = {"documents": "d", "queries": "q", "candidates": "c", "output": "o"}


def _spec(model: Any) -> Any:
    return resolve.model_spec(resolve_config({"model": model}).rerankers[0])


def test_one_checkpoint() -> None:
    assert _spec(CHECKPOINT) == CheckpointSpec(**CHECKPOINT)
    assert _spec({"path": "t"}) == CheckpointSpec("t")


def test_two_checkpoints_with_their_scales() -> None:
    text = {**CHECKPOINT, "calibration": {"scale": 0.37, "bias": -1.2}}
    image = {"path": "i", "calibration": {"scale": 2.5, "bias": 0.3}}
    expected = RoutedSpec(
        CheckpointSpec(**CHECKPOINT), CheckpointSpec("i"), LogitScale(0.37, -1.2), LogitScale(2.5, 0.3)
    )
    assert _spec({"text": text, "image": image}) == expected


@pytest.mark.parametrize("name", [*LIMITS, *OPTIONS])
def test_scoring_settings_differ_from_their_defaults_here(name: str) -> None:
    assert {**LIMITS, **OPTIONS}[name] != getattr(resolve_config({}).scoring, name)


def test_limits_and_runtime_options() -> None:
    scoring = resolve_config({"scoring": {**LIMITS, **OPTIONS}}).scoring
    assert resolve.limits(scoring) == Limits(**LIMITS)
    assert resolve.runtime_options(scoring) == RuntimeOptions(**OPTIONS)


def test_storage() -> None:
    lake = resolve_config({"lake": {**LAKE, "storage": STORAGE}}).lake
    assert resolve.storage(lake.storage).options == StorageOptions(**STORAGE)


def test_defaults_of_the_config_are_those_of_the_records() -> None:
    config = resolve_config({})
    assert resolve.limits(config.scoring) == Limits()
    assert resolve.runtime_options(config.scoring) == RuntimeOptions()
    assert resolve.storage(config.lake.storage).options == StorageOptions()
