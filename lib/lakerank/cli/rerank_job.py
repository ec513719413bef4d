"""From a config to the records of a rerank job."""

from __future__ import annotations

from collections.abc import Sequence

from lakerank.audit import Bounds
from lakerank.cli.resolve import limits, model_spec, runtime_options
from lakerank.config import CascadeStageConfig, Config, EnsembleConfig, ModelConfig
from lakerank.cost import Calibration
from lakerank.errors import ConfigError
from lakerank.lake.runs import RunPaths
from lakerank.lake.storage import Storage
from lakerank.model.spec import ScorerIdentity
from lakerank.plan.plan import PlanLimits, Tables
from lakerank.ranking import Fusion
from lakerank.spark.publish import AuditRules
from lakerank.spark.rank.combine import FusionRule
from lakerank.spark.rank.write import RankRule
from lakerank.spark.run import Rerank
from lakerank.spark.score import SpecFactory
from lakerank.spark.stage import Stage


def rerank_job(config: Config, run_id: str, storage: Storage) -> Rerank:
    """The job that a config describes.

    Raises:
        CheckpointError: the model's folder is not a checkpoint that can be loaded.
        ConfigError: `scoring.calibration` is not a calibration file, or `model:` names a reranker twice.
    """
    stages = _stages(config)
    lake, audit, calibration = config.lake.located(), config.audit, None
    if (address := config.scoring.calibration) is not None:
        calibration = Calibration.from_json(storage.read_bytes(address), source=address)
    return Rerank(
        paths=RunPaths(lake.output, run_id),
        tables=Tables(lake.documents, lake.queries, lake.candidates),
        stages=stages,
        rule=_rule(config, stages),
        audit=AuditRules(_bounds(config), audit.golden_pairs, audit.golden_qrels),
        config_yaml=config.to_yaml(),
        calibration=calibration,
    )


def _stages(config: Config) -> tuple[Stage, ...]:
    """One for each reranker of the config, in its order."""
    stages: dict[str, Stage] = {}
    duplicates = []
    bounds = limits(config.scoring)
    for model in config.rerankers:
        spec = model_spec(model)
        scorer = spec.identify(bounds)
        name = model.path if isinstance(model, ModelConfig) else f"{model.text.path} and {model.image.path}"
        if scorer.fingerprint in stages:
            duplicates.append(f"model: {name} is named twice, and would only give the same scores again")
        stages[scorer.fingerprint] = Stage(
            scorer=scorer.fingerprint,
            model=name,
            parameters=scorer.parameters,
            logit_bias=scorer.logit_bias,
            factory=SpecFactory(spec, bounds, runtime_options(config.scoring), scorer),
            device=config.device,
            limits=_plan_limits(config, scorer),
            top=model.top if isinstance(model, CascadeStageConfig) else None,
        )
    if duplicates:
        raise ConfigError(duplicates)
    return tuple(stages.values())


def _rule(config: Config, stages: Sequence[Stage]) -> RankRule | FusionRule:
    """How logits become lists: those of one reranker, or of several combined."""
    biases = tuple(stage.logit_bias for stage in stages)
    thresholds, depth = config.ranking.label_thresholds, config.ranking.depth
    if len(stages) == 1:
        return RankRule(biases[0], thresholds, depth)
    return FusionRule(biases, _fusion(config), thresholds, depth)


def _fusion(config: Config) -> Fusion | None:
    """The fusion of an ensemble's lists; None for a cascade."""
    model = config.model
    if not isinstance(model, EnsembleConfig):
        return None
    weights = model.weights or (1.0,) * len(model.ensemble)
    return Fusion(model.fusion, tuple(weight / sum(weights) for weight in weights), model.k)


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
