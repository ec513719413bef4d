"""From a config to a rerank job in plain values: below this, nothing takes a config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pyspark import TaskContext

from lakerank.audit import Bounds
from lakerank.config import Config, EnsembleConfig, ModelConfig, StageConfig
from lakerank.cost import Calibration
from lakerank.errors import ConfigError
from lakerank.fusion import Fusion
from lakerank.lake.runs import RunPaths
from lakerank.lake.storage import Storage, StorageOptions
from lakerank.limits import Limits
from lakerank.model.spec import ModelSpec, RuntimeOptions, ScorerIdentity, model_spec
from lakerank.spark.plan.plan import PlanLimits, Tables
from lakerank.spark.publish import AuditRules
from lakerank.spark.rank.combine import FusionRule
from lakerank.spark.rank.lists import RankRule
from lakerank.spark.run import Rerank
from lakerank.spark.score import LoadedReranker
from lakerank.spark.stage import Stage


@dataclass(frozen=True, slots=True)
class SourceFactory:
    """Loads a reranker inside a worker process: this crosses to the worker, the weights never do."""

    source: ModelSpec
    limits: Limits
    hosting: RuntimeOptions
    scorer: ScorerIdentity

    def __call__(self, device: str) -> LoadedReranker:
        """Load onto a torch device. On a CPU a task keeps to its own share of the cores unless told otherwise."""
        context = TaskContext.get()
        threads = self.hosting.device_threads or (context.cpus() if context else None)
        return self.source.load(device, self.limits, replace(self.hosting, device_threads=threads), self.scorer)


def rerank_job(config: Config, run_id: str) -> Rerank:
    """The job that a config describes.

    Raises:
        CheckpointError: the model's folder is not a checkpoint that can be loaded.
        ConfigError: `scoring.calibration` names a file that is no calibration, or `model:` the same reranker twice.
    """
    passes = _passes(config)
    return Rerank(
        paths=RunPaths(config.lake.output, run_id),
        tables=Tables(config.lake.documents, config.lake.queries, config.lake.candidates),
        stages=passes,
        rule=_rule(config, passes),
        rules=AuditRules(_bounds(config), config.audit.golden_pairs, config.audit.golden_qrels),
        config_yaml=config.to_yaml(),
        calibration=_calibration(config),
    )


def _passes(config: Config) -> tuple[Stage, ...]:
    """One for each reranker that `model:` names, in its order."""
    scoring = config.scoring
    limits = Limits(**scoring.limits())
    hosting = RuntimeOptions(**scoring.hosting())
    passes = []
    for model in config.rerankers:
        source = model_spec(model.source())
        scorer = source.identify(limits)
        passes.append(
            Stage(
                scorer.fingerprint,
                model.path if isinstance(model, ModelConfig) else f"{model.text.path} and {model.image.path}",
                scorer.parameters,
                scorer.logit_bias,
                SourceFactory(source, limits, hosting, scorer),
                config.device,
                _plan_limits(config, scorer),
                model.top if isinstance(model, StageConfig) else None,
            )
        )
    scorers = [one.scorer for one in passes]
    twice = [one.model for number, one in enumerate(passes) if one.scorer in scorers[:number]]
    if twice:
        raise ConfigError([f"model: {name} is named twice, and would only say the same again" for name in twice])
    return tuple(passes)


def _rule(config: Config, passes: Sequence[Stage]) -> RankRule | FusionRule:
    """How logits become lists: those of one reranker, or of all that `model:` names together."""
    biases = tuple(one.logit_bias for one in passes)
    thresholds, depth = config.ranking.label_thresholds, config.ranking.depth
    if len(passes) == 1:
        return RankRule(biases[0], thresholds, depth)
    return FusionRule(biases, _fusion(config), thresholds, depth)


def _fusion(config: Config) -> Fusion | None:
    """How an ensemble's lists become one; None for anything else."""
    model = config.model
    if not isinstance(model, EnsembleConfig):
        return None
    weights = model.weights or (1.0,) * len(model.ensemble)
    return Fusion(model.fusion, tuple(weight / sum(weights) for weight in weights), model.k)


def _calibration(config: Config) -> Calibration | None:
    """What `scoring.calibration` names: a file here or in the lake."""
    address = config.scoring.calibration
    if address is None:
        return None
    storage = Storage(StorageOptions(**config.lake.storage.model_dump()))
    return Calibration.from_json(storage.read_bytes(address), source=address)


def _plan_limits(config: Config, scorer: ScorerIdentity) -> PlanLimits:
    scoring = config.scoring
    return PlanLimits(
        document=scorer.document_sizing(),
        query=scorer.query_sizing(),
        max_queries_per_group=scoring.max_queries_per_group,
        unit_tokens=scoring.unit_tokens,
        rows_per_file=config.spark.rows_per_file,
        readings=scorer.readings,
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
