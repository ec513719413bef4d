"""Config to records: what the layers below take instead of a config. `rerank_job` does the same for Spark's."""

from __future__ import annotations

from lakerank.config import ModelConfig, RoutedConfig, ScoringConfig, StorageConfig
from lakerank.lake.storage import Storage, StorageOptions
from lakerank.limits import Limits, LogitScale
from lakerank.model.spec import CheckpointSpec, ModelSpec, RoutedSpec, RuntimeOptions


def storage(config: StorageConfig) -> Storage:
    """The storage of a job. Built once, where the job starts."""
    options = StorageOptions(
        endpoint_url=config.endpoint_url,
        region=config.region,
        profile=config.profile,
        anonymous=config.anonymous,
        addressing_style=config.addressing_style,
        connect_timeout_s=config.connect_timeout_s,
        request_timeout_s=config.request_timeout_s,
        max_attempts=config.max_attempts,
    )
    return Storage(options)


def limits(scoring: ScoringConfig) -> Limits:
    """The limits of a pair."""
    return Limits(
        max_length=scoring.max_length,
        max_query_length=scoring.max_query_length,
        min_pixels=scoring.min_pixels,
        max_pixels=scoring.max_pixels,
        max_source_pixels=scoring.max_source_pixels,
        max_source_bytes=scoring.max_source_bytes,
    )


def runtime_options(scoring: ScoringConfig) -> RuntimeOptions:
    """Threads and reproducibility of a reranker in memory."""
    return RuntimeOptions(
        host_threads=scoring.host_threads, device_threads=scoring.device_threads, reproducible=scoring.reproducible
    )


def model_spec(model: ModelConfig | RoutedConfig) -> ModelSpec:
    """One reranker of `config.rerankers`."""
    if isinstance(model, ModelConfig):
        return _checkpoint(model)
    text, image = (LogitScale(route.calibration.scale, route.calibration.bias) for route in (model.text, model.image))
    return RoutedSpec(_checkpoint(model.text), _checkpoint(model.image), text, image)


def _checkpoint(model: ModelConfig) -> CheckpointSpec:
    return CheckpointSpec(
        path=model.path,
        revision=model.revision,
        adapter=model.adapter,
        adapter_revision=model.adapter_revision,
        family=model.family,
        max_length=model.max_length,
        dtype=model.dtype,
    )
