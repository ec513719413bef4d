"""From a config to a rerank job in plain values: below this, nothing takes a config."""

from __future__ import annotations

from dataclasses import dataclass

from pyspark import TaskContext

from lakerank.audit import Bounds
from lakerank.config import Config
from lakerank.cost import Calibration, Sizing
from lakerank.lake.runs import RunPaths
from lakerank.lake.storage import Storage, StorageOptions
from lakerank.model.checkpoint import CheckpointIdentity, identify
from lakerank.model.prompt import Limits
from lakerank.spark.plan import PlanLimits, Tables
from lakerank.spark.publish import AuditRules
from lakerank.spark.rank import RankRule
from lakerank.spark.rerank import Rerank
from lakerank.spark.score import LoadedReranker


@dataclass(frozen=True, slots=True)
class CheckpointFactory:
    """Loads a checkpoint inside a worker process: this crosses to the worker, the weights never do."""

    path: str
    revision: str | None
    adapter: str | None
    dtype: str
    limits: Limits
    host_threads: int
    device_threads: int | None
    reproducible: bool
    identity: CheckpointIdentity

    def __call__(self, device: str) -> LoadedReranker:
        """Load onto a torch device. On a CPU a task keeps to its own share of the cores unless told otherwise."""
        from lakerank.model.rerankers import load_reranker

        context = TaskContext.get()
        return load_reranker(
            self.path,
            revision=self.revision,
            adapter=self.adapter,
            dtype=self.dtype,
            device=device,
            limits=self.limits,
            host_threads=self.host_threads,
            device_threads=self.device_threads or (context.cpus() if context else None),
            reproducible=self.reproducible,
            identity=self.identity,
        )


def rerank_job(config: Config, run_id: str) -> Rerank:
    """The job that a config describes.

    Raises:
        CheckpointError: the model's folder is not a checkpoint that can be loaded.
        ConfigError: `scoring.calibration` names a file that is no calibration.
    """
    model, scoring = config.model, config.scoring
    limits = Limits(**scoring.limits())
    identity = identify(model.path, revision=model.revision, adapter=model.adapter, dtype=model.dtype, limits=limits)
    return Rerank(
        paths=RunPaths(config.lake.output, run_id),
        tables=Tables(config.lake.documents, config.lake.queries, config.lake.candidates),
        scorer=identity.fingerprint,
        parameters=identity.parameters,
        factory=CheckpointFactory(
            model.path,
            model.revision,
            model.adapter,
            model.dtype,
            limits,
            scoring.host_threads,
            scoring.device_threads,
            scoring.reproducible,
            identity,
        ),
        device=model.device,
        limits=_plan_limits(config),
        rule=RankRule(identity.logit_bias, config.ranking.label_thresholds, config.ranking.depth),
        rules=AuditRules(_bounds(config), config.audit.golden_pairs, config.audit.golden_qrels),
        config_yaml=config.to_yaml(),
        calibration=_calibration(config),
    )


def _calibration(config: Config) -> Calibration | None:
    """What `scoring.calibration` names: a file here or in the lake."""
    address = config.scoring.calibration
    if address is None:
        return None
    storage = Storage(StorageOptions(**config.lake.storage.model_dump()))
    return Calibration.from_json(storage.read_bytes(address), source=address)


def _plan_limits(config: Config) -> PlanLimits:
    scoring = config.scoring
    return PlanLimits(
        document=Sizing(scoring.min_pixels, scoring.max_pixels, scoring.max_length - scoring.max_query_length),
        query=Sizing(scoring.min_pixels, scoring.max_pixels, scoring.max_query_length),
        max_queries_per_group=scoring.max_queries_per_group,
        unit_tokens=scoring.unit_tokens,
        rows_per_file=config.spark.rows_per_file,
    )


def _bounds(config: Config) -> Bounds:
    audit = config.audit
    return Bounds(
        max_reject_rate=audit.max_reject_rate,
        max_reject_rates={reason.value: share for reason, share in (audit.max_reject_rates or {}).items()},
        max_unranked_queries=audit.max_unranked_queries,
        max_truncated=audit.max_truncated,
        max_score_drift=audit.max_score_drift,
        max_score_ks=audit.max_score_ks,
        max_churn=audit.max_churn,
        max_ndcg_drop=audit.max_ndcg_drop,
        golden_tolerance=audit.golden_tolerance,
    )
