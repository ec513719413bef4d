"""Config to records: every setting reaches the record that it is for."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakerank.cli import resolve
from lakerank.config import LakeConfig, resolve_config
from lakerank.lake.storage import Storage, StorageOptions
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
    lake = resolve_config(
        {"lake": {**LAKE, "storage": STORAGE, "image_roots": ["/pages"], "image_hosts": ["img.example"]}}
    ).lake
    storage = resolve.storage(lake)
    assert (storage.options, storage.image_roots) == (StorageOptions(**STORAGE), ("/pages",))
    assert storage.image_hosts == ("img.example",)


def test_defaults_of_the_config_are_those_of_the_records() -> None:
    config = resolve_config({})
    assert resolve.limits(config.scoring) == Limits()
    assert resolve.runtime_options(config.scoring) == RuntimeOptions()
    assert resolve.storage(config.lake).options == StorageOptions()


def test_the_bundled_lake_is_known_by_its_files(tmp_path: Path) -> None:
    """Under its name, by its path, and as a copy; with one table of another it is another lake."""
    bundled = LakeConfig(documents="embedded", queries="embedded", candidates="c", output="o")
    (tmp_path / "documents").mkdir()
    shutil.copy(bundled.located().documents, tmp_path / "documents" / "part-0.parquet")
    rows = pa.table({"query_id": ["q"], "text": ["how do I resume a job"]})
    pq.write_table(rows, tmp_path / "queries.parquet")
    lakes = {
        True: [bundled, bundled.located(), bundled.model_copy(update={"documents": str(tmp_path / "documents")})],
        False: [bundled.model_copy(update={"queries": str(tmp_path / "queries.parquet")})],
    }
    for expected, configs in lakes.items():
        assert [resolve.is_bundled(lake, Storage()) for lake in configs] == [expected] * len(configs)


@pytest.mark.parametrize(
    ("model", "own", "warned"),
    [
        ({"path": "embedded"}, True, True),
        ({"path": "embedded"}, False, False),
        ({"path": "embedded", "adapter": "mine"}, True, False),
        ({"path": "other"}, True, False),
        ([{"path": "other"}, {"path": "embedded", "top": 5}], True, True),
        ({kind: {"path": path, "calibration": {"scale": 1, "bias": 0}} for kind, path in
          (("text", "embedded"), ("image", "other"))}, True, True),
    ],
)  # fmt: skip
def test_the_bundled_checkpoint_on_another_lake_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, model: Any, own: bool, warned: bool
) -> None:
    pq.write_table(pa.table({"doc_id": ["d"], "text": ["a page"]}), tmp_path / "documents.parquet")
    lake = {"documents": str(tmp_path / "documents.parquet"), "queries": "embedded", "candidates": "c", "output": "o"}
    config = resolve_config({"model": model, **({"lake": lake} if own else {})})
    with caplog.at_level(logging.WARNING):
        warnings = resolve.warnings_of(config, Storage())
    assert [*warnings] == [record.getMessage() for record in caplog.records]
    assert bool(warnings) == warned
    assert all("lakerank fetch minilm-en" in warning for warning in warnings)


@pytest.mark.parametrize("model", ["{path: embedded}", "[{path: embedded}, {path: embedded, max_length: 128, top: 4}]"])
def test_the_plan_of_every_stage_has_the_groups_that_the_ranking_asks_for(model: str) -> None:
    for per_group in (None, 3):
        overrides = [f"model={model}", f"ranking.per_group={'null' if per_group is None else per_group}"]
        job = resolve.rerank_job(resolve_config({}, overrides), "r", Storage())
        assert job.rule.per_group == per_group
        assert {stage.limits.with_group_ids for stage in job.stages} == {per_group is not None}
