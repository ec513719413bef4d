"""Config to records: what the layers below take instead of a config."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, TypeVar

from lakerank.audit import Bounds
from lakerank.config import (
    CascadeStageConfig,
    Config,
    EnsembleConfig,
    ModelConfig,
    RoutedConfig,
    ScoringConfig,
    StorageConfig,
)
from lakerank.cost import Calibration
from lakerank.errors import ConfigError
from lakerank.lake.runs import RunPaths
from lakerank.lake.storage import Storage, StorageOptions
from lakerank.limits import Limits, LogitScale
from lakerank.model.routed import ModelSpec, RoutedSpec
from lakerank.model.spec import CheckpointSpec, RuntimeOptions
from lakerank.plan.plan import PlanLimits, Tables
from lakerank.ranking import Fusion

if TYPE_CHECKING:
    from lakerank.rerank.rank.combine import FusionRule
    from lakerank.rerank.rank.write import RankRule
    from lakerank.rerank.stage import Stage
    from lakerank.spark.run import Rerank

Record = TypeVar("Record")


def storage(config: StorageConfig) -> Storage:
    """The storage of a job. Built once, where the job starts."""
    return Storage(_record(StorageOptions, config))


def limits(scoring: ScoringConfig) -> Limits:
    """The limits of a pair."""
    return _record(Limits, scoring)


def runtime_options(scoring: ScoringConfig) -> RuntimeOptions:
    """Threads and reproducibility of a reranker in memory."""
    return _record(RuntimeOptions, scoring)


def model_spec(model: ModelConfig | RoutedConfig) -> ModelSpec:
    """One reranker of `config.rerankers`."""
    if isinstance(model, ModelConfig):
        return _record(CheckpointSpec, model)
    text, image = (_record(LogitScale, route.calibration) for route in (model.text, model.image))
    return RoutedSpec(_record(CheckpointSpec, model.text), _record(CheckpointSpec, model.image), text, image)


def model_name(model: ModelConfig | RoutedConfig) -> str:
    """What messages and manifests call a reranker: its checkpoint's path, or both."""
    return model.path if isinstance(model, ModelConfig) else f"{model.text.path} and {model.image.path}"


def rerank_job(config: Config, run_id: str, storage: Storage) -> Rerank:
    """The rerank job that a config describes.

    Raises:
        CheckpointError: the model's folder is not a checkpoint that can be loaded.
        ConfigError: `scoring.calibration` is not a calibration file, or `model:` names a reranker twice.
    """
    from lakerank.spark.publish import AuditRules
    from lakerank.spark.run import Rerank

    stages = _stages(config)
    lake, audit, calibration = config.lake.located(), config.audit, None
    if (address := config.scoring.calibration) is not None:
        calibration = Calibration.from_json(storage.read_bytes(address), source=address)
    reject_rates = {reason.value: share for reason, share in (audit.max_reject_rates or {}).items()}
    bounds = _record(Bounds, audit, max_reject_rates=reject_rates)
    return Rerank(
        paths=RunPaths(lake.output, run_id),
        tables=Tables(lake.documents, lake.queries, lake.candidates),
        stages=stages,
        rule=_rule(config, stages),
        audit=AuditRules(bounds, audit.golden_pairs, audit.golden_qrels),
        config_yaml=config.to_yaml(),
        calibration=calibration,
    )


def _stages(config: Config) -> tuple[Stage, ...]:
    """One for each reranker of the config, in its order."""
    from lakerank.rerank.score import SpecFactory
    from lakerank.rerank.stage import Stage

    stages: dict[str, Stage] = {}
    duplicates = []
    scoring, bounds = config.scoring, limits(config.scoring)
    for model in config.rerankers:
        spec = model_spec(model)
        scorer = spec.identify(bounds)
        name = model_name(model)
        if scorer.fingerprint in stages:
            duplicates.append(f"model: {name} is named twice, and would only give the same scores again")
        stages[scorer.fingerprint] = Stage(
            scorer=scorer.fingerprint,
            model=name,
            parameters=scorer.parameters,
            logit_bias=scorer.logit_bias,
            factory=SpecFactory(spec, bounds, runtime_options(scoring), scorer),
            device=config.device,
            limits=PlanLimits(
                document=scorer.document_sizing(),
                query=scorer.query_sizing(),
                max_queries_per_group=scoring.max_queries_per_group,
                unit_tokens=scoring.unit_tokens,
                rows_per_file=config.spark.rows_per_file,
                readings=scorer.readings,
            ),
            top=model.top if isinstance(model, CascadeStageConfig) else None,
        )
    if duplicates:
        raise ConfigError(duplicates)
    return tuple(stages.values())


def _rule(config: Config, stages: Sequence[Stage]) -> RankRule | FusionRule:
    """How logits become lists: those of one reranker, or those of a cascade or an ensemble combined."""
    from lakerank.rerank.rank.combine import FusionRule
    from lakerank.rerank.rank.write import RankRule

    biases, fusion = tuple(stage.logit_bias for stage in stages), None
    thresholds, depth = config.ranking.label_thresholds, config.ranking.depth
    if len(stages) == 1:
        return RankRule(biases[0], thresholds, depth)
    if isinstance(model := config.model, EnsembleConfig):
        weights = model.weights or (1.0,) * len(model.ensemble)
        fusion = Fusion(model.fusion, tuple(weight / sum(weights) for weight in weights), model.k)
    return FusionRule(biases, fusion, thresholds, depth)


def _record(kind: Callable[..., Record], section: Any, **values: Any) -> Record:
    """A record whose fields are the settings of the same names, but for the values given."""
    names = signature(kind).parameters.keys() - values.keys()
    return kind(**{name: getattr(section, name) for name in names}, **values)
