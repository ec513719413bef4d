"""Config to records: what the layers below take instead of a config."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from lakerank import schemas
from lakerank.config import (
    EMBEDDED,
    CascadeStageConfig,
    Config,
    EnsembleConfig,
    LakeConfig,
    ModelConfig,
    RoutedConfig,
    ScoringConfig,
    resolve_config,
)
from lakerank.cost import Calibration
from lakerank.credentials import without_credentials
from lakerank.duplicates.sketch import Likeness, require_library
from lakerank.errors import CheckpointError, ConfigError, LakerankError, RunNotFoundError, SchemaError, StorageError
from lakerank.lake import DELTA, ICEBERG, absolute
from lakerank.lake.formats import resolve
from lakerank.lake.formats.output import OutputTable, check_output
from lakerank.lake.runs import RunPaths, read_config, read_json, read_manifest
from lakerank.lake.storage import Storage, StorageOptions
from lakerank.lake.tables import fragments
from lakerank.lake.trial import START_TRIAL_S, deadly_file, deadly_message
from lakerank.limits import Limits, LogitScale
from lakerank.model.checkpoint import MINILM_EN, fetch_command
from lakerank.model.registry import WIDE, family_named
from lakerank.model.routed import ModelSpec, RoutedSpec
from lakerank.model.spec import CheckpointSpec, RuntimeOptions, ScorerIdentity
from lakerank.plan.conflicts import changed_settings
from lakerank.plan.guarantee import Promise
from lakerank.plan.plan import PlanLimits, Tables
from lakerank.ranking import Fusion
from lakerank.settings import parse_settings, read_yaml

if TYPE_CHECKING:
    from lakerank.rerank.rank.combine import FusionRule
    from lakerank.rerank.rank.write import RankRule
    from lakerank.rerank.run import Rerank
    from lakerank.rerank.stage import Stage

logger = logging.getLogger(__name__)

Record = TypeVar("Record")

#: Files of a table whose footers are read before a job starts; planning reads all.
CHECKED_FILES = 16

#: Devices by which the drivers of NVIDIA's and AMD's GPUs are reached, the second under Windows.
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/nvhost-ctrl-gpu")

#: What is not promised where another library makes batches.
_BATCHED = "{}: the last bits of scores depend on the pairs of a batch; scoring.reproducible=true reads each pair alone"

#: The settings of `lake:` that are tables; what a run reads of them.
TABLES = ("documents", "queries", "candidates", "qrels")
INPUTS = TABLES[:3]
_TABLE_SETTINGS = tuple(f"lake.{name}" for name in TABLES)


def storage(config: StorageOptions | LakeConfig, pins: Mapping[str, str] | None = None) -> Storage:
    """The storage of a job; of a lake's whole section it knows columns of other names and where images may be.

    `pins`: addresses of tables at snapshots, as another storage has them.
    """
    if not isinstance(config, LakeConfig):
        return Storage(config)
    roots = tuple(map(absolute, config.image_roots))
    made = Storage(config.storage, config.columns.by_address(config.located()), roots, config.image_hosts)
    made.pins.update(pins or {})
    return made


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


def model_details(model: ModelConfig | RoutedConfig) -> str:
    """The reranker as reports name it: checkpoint, revision, adapter, dtype; of two, which scores which pairs."""
    if isinstance(model, RoutedConfig):
        return f"texts: {model_details(model.text)}; images: {model_details(model.image)}"
    adapter = f"adapter {model.adapter}" if model.adapter else None
    told = f"instruction {model.instruction!r}" if model.instruction else None
    revision, of_adapter = (f"revision {name}" if name else None for name in (model.revision, model.adapter_revision))
    return ", ".join(filter(None, (model.path, revision, adapter, of_adapter, f"dtype {model.dtype}", told)))


def input_faults(config: Config, storage: Storage, cluster: bool) -> list[LakerankError]:
    """What is wrong with the first files of what a run reads, and with where it computes, each with its setting.

    `cluster`: the device is another machine's.
    """
    faults: list[LakerankError] = []
    files: list[str] = []
    for name, (address, schema) in input_tables(config).items():
        try:
            of_table = _check_footers(storage, address, schema)
            files += of_table[:CHECKED_FILES] if cluster else of_table  # Spark's workers die for the job
        except (SchemaError, StorageError) as error:
            faults.append(type(error)(f"lake.{name}: {error}"))
    try:
        if table := _ranked_table(config.lake):
            check_output(storage, table)
    except LakerankError as error:
        message = f"lake.ranked_table: {error}"
        faults.append(ConfigError([message]) if isinstance(error, ConfigError) else type(error)(message))
    if deadly := deadly_file(storage, files, (), START_TRIAL_S):
        faults.append(StorageError(deadly_message(*deadly)))
    if not cluster and config.device.startswith("cuda") and not any(Path(driver).exists() for driver in GPU_DRIVERS):
        faults.append(CheckpointError(f"model.device: {config.device}, but this machine has no GPU; say cpu or auto"))
    return faults


def input_tables(config: Config) -> dict[str, tuple[str, pa.Schema]]:
    """Address and schema of the tables that a run reads, by the setting's name."""
    lake = config.lake.located()
    return {name: (getattr(lake, name), getattr(schemas, name.upper())) for name in INPUTS}


def without_faults(faults: Sequence[LakerankError], make: Callable[[], Record]) -> Record:
    """What `make` returns, unless there are faults.

    Raises:
        LakerankError: all of them and `make`'s own, of the type of the first one.
    """
    try:
        made = make()
    except LakerankError as error:
        faults = [*faults, error]
    if faults:
        messages = "\n".join(map(str, faults))
        raise ConfigError([messages]) if isinstance(faults[0], ConfigError) else type(faults[0])(messages)
    return made


def _check_footers(storage: Storage, address: str, schema: pa.Schema) -> list[str]:
    """Check the columns of a table's first files, and return all."""
    snapshot = resolve(storage, address)
    fragments(storage, replace(snapshot, files=snapshot.files[:CHECKED_FILES]), schema, whole=lambda file: True)
    return [file.uri for file in snapshot.files]


def rerank_job(config: Config, run_id: str, storage: Storage) -> Rerank:
    """The rerank job that a config describes.

    Raises:
        CheckpointError: the model's folder is not a checkpoint that can be loaded.
        ConfigError: `scoring.calibration` is not a calibration file, or `model:` names a reranker twice.
    """
    from lakerank.rerank.publish import AuditRules
    from lakerank.rerank.run import Rerank

    stages = _stages(config)
    lake, calibration = config.lake.located(), None
    if (address := config.scoring.calibration) is not None:
        calibration = Calibration.from_json(storage.read_bytes(address), source=address)
    caveats = [stage.caveat for stage in stages if stage.caveat]
    for caveat in caveats:
        logger.warning("%s", caveat)
    return Rerank(
        paths=RunPaths(lake.output, run_id),
        tables=Tables(lake.documents, lake.queries, lake.candidates),
        stages=stages,
        rule=_rule(config, stages),
        audit=AuditRules(config.audit),
        config_yaml=recorded(config, storage, run_id),
        calibration=calibration,
        warnings=(*warnings_of(config, storage), *caveats),
        ranked_table=_ranked_table(config.lake),
    )


def _ranked_table(lake: LakeConfig) -> OutputTable | None:
    return OutputTable(lake.ranked_table, lake.ranked_table_mode == "append") if lake.ranked_table else None


def is_bundled(lake: LakeConfig, storage: Storage) -> bool:
    """Whether a lake's documents and queries are the bundled lake's, or copies of its files, by their sizes.

    Raises StorageError: a table is not there.
    """
    located, bundled = lake.located(), lake.model_copy(update={"documents": EMBEDDED, "queries": EMBEDDED}).located()
    pairs = ((located.documents, bundled.documents), (located.queries, bundled.queries))
    return all(
        address == path or [file.size for file in resolve(storage, address).files] == [Path(path).stat().st_size]
        for address, path in pairs
    )


def warnings_of(config: Config, storage: Storage) -> tuple[str, ...]:
    """What the manifest says of a config whose lists are likely to be worth nothing; the log says it here."""
    models: list[ModelConfig] = []
    for model in config.rerankers:
        models += [model] if isinstance(model, ModelConfig) else [model.text, model.image]
    if not any(model.path == EMBEDDED and model.adapter is None for model in models):
        return ()
    try:
        if is_bundled(config.lake, storage):
            return ()
    except StorageError:  # planning, which needs the table, says so
        return ()
    advice = f"for English texts: {fetch_command(MINILM_EN)}, then model.path={MINILM_EN}; docs/models.md has others"
    warning = f"model embedded knows the bundled lake's pictograms alone, and this is another lake; {advice}"
    logger.warning("%s", warning)
    return (warning,)


def recorded(config: Config, storage: Storage, run_id: str) -> str:
    """The config as a run keeps it: its tables are found from any folder, judgements at their snapshot of when it was
    first kept."""
    lake, paths = config.lake, RunPaths(config.lake.output, run_id)
    places: dict[str, Any] = {"image_roots": tuple(map(absolute, lake.image_roots))}
    names = [name for name in (*TABLES, "ranked_table") if getattr(lake, name) is not None]
    places |= {name: absolute(getattr(lake, name)) for name in names}
    if (lake.qrels or "").startswith((DELTA, ICEBERG)):
        kept = (parse_settings(read_config(storage, paths) or b"{}", paths.config).get("lake") or {}).get("qrels")
        is_kept = (kept or "").rpartition("@")[0] == places["qrels"]
        places["qrels"] = kept if is_kept else resolve(storage, places["qrels"]).address
    return config.model_copy(update={"lake": lake.model_copy(update=places)}).to_yaml()


@dataclass(frozen=True, slots=True)
class CommandLine:
    """The config of a command as resolved, the file that it is from, and the `--set`."""

    config: Config
    source: str
    overrides: Sequence[str]

    @classmethod
    def read(cls, path: Path | None, overrides: Sequence[str]) -> CommandLine:
        """The config of a file, or the defaults, with overrides. Raises ConfigError."""
        source = str(path or "defaults")
        return cls(resolve_config(read_yaml(path) if path else {}, overrides, source), source, overrides)


def run_config(storage: Storage, given: CommandLine, run_id: str, other_tables: bool = False) -> Config:
    """The config that a run was made with, whose tables are read at the snapshots that it was made from.

    Output, storage and Spark's settings are the command line's.

    `--set lake.qrels` replaces the run's judgements, and so do those of a config whose other tables are the run's. Any
    other setting of the command line must be the run's own, or a table where `other_tables` is given.

    Raises:
        ConfigError: one is not; names it, with both values.
        RunNotFoundError: the run has left no config.
    """
    paths = RunPaths(given.config.lake.output, run_id)
    stored = read_config(storage, paths)
    if stored is None:
        if other_tables:
            return given.config
        raise RunNotFoundError(
            f"{paths.config}: not there, so what run {run_id!r} was made from is not known; name its tables with --set "
            "and --other-tables"
        )
    own, wanted = (_stored(stored, paths.config, overrides) for overrides in ((), given.overrides))
    _check_own(own, wanted, run_id, other_tables)
    lake = wanted.lake.model_copy(update={"output": given.config.lake.output, "storage": given.config.lake.storage})
    passed_over = [name for name in _changed(wanted, given.config) if name in _TABLE_SETTINGS]
    if (lake.qrels or "").rpartition("@")[0] == absolute(given.config.lake.qrels or ""):  # the same, at a snapshot
        passed_over = [name for name in passed_over if name != "lake.qrels"]
    if passed_over == ["lake.qrels"] and given.config.lake.qrels and "lake.qrels" not in _changed(own, wanted):
        logger.info("run %s is judged by lake.qrels of %s: its other tables are the run's", run_id, given.source)
        lake = lake.model_copy(update={"qrels": given.config.lake.qrels})
    elif passed_over:
        logger.info(
            "run %s is read with the tables that it was made from; %s of %s %s passed over",
            run_id, ", ".join(passed_over), given.source, "is" if len(passed_over) == 1 else "are",
        )  # fmt: skip
    record = read_manifest(storage, paths.output, run_id) or read_json(storage, paths.plan_file) or {}
    storage.pin(record.get("inputs", {}), own.lake.located().model_dump())
    return wanted.model_copy(update={"lake": lake, "spark": given.config.spark})


def other_tables(storage: Storage, config: Config, run_id: str) -> str:
    """Names of the tables of a config that another run of its output was not made from; "" for none."""
    paths = RunPaths(config.lake.output, run_id)
    stored = read_config(storage, paths)
    own = config if stored is None else _stored(stored, paths.config)
    return ", ".join(name for name in _changed(own, config) if name in _TABLE_SETTINGS and name != "lake.qrels")


def _stored(content: bytes, address: str, overrides: Sequence[str] = ()) -> Config:
    """The config that a run keeps. Those of earlier versions have credentials, which are not used: they are old."""
    clean = without_credentials(content.decode(errors="surrogateescape")).encode(errors="surrogateescape")
    return resolve_config(parse_settings(clean, address), overrides, address)


def _check_own(own: Config, wanted: Config, run_id: str, other_tables: bool) -> None:
    faults = []
    for name, (before, now) in _changed(own, wanted).items():
        what = f"--set {name}={now}: run {run_id!r} was made with {before}"
        if name in _TABLE_SETTINGS:
            if name != "lake.qrels" and not other_tables:
                faults.append(f"{what}; leave it out, or say --other-tables")
        elif not name.startswith(("lake.", "spark.", "audit.")) and not name.endswith(".device"):
            faults.append(f"{what}; leave it out, or make another run")
    if faults:
        raise ConfigError(faults)


def _changed(before: Config, now: Config) -> dict[str, tuple[Any, Any]]:
    return changed_settings(before.model_dump(mode="json"), now.model_dump(mode="json"), complete=True)


def _stages(config: Config) -> tuple[Stage, ...]:
    """One for each reranker of the config, in its order."""
    from lakerank.rerank.score import SpecFactory
    from lakerank.rerank.stage import Stage

    stages: dict[str, Stage] = {}
    faults = []
    scoring, bounds, likeness = config.scoring, limits(config.scoring), _likeness(config)
    for model in config.rerankers:
        spec = model_spec(model)
        scorer = spec.identify(bounds)
        name, families = model_name(model), [identity.family for identity in scorer.identities]
        faults += _list_faults(config, model, scorer)
        if scorer.fingerprint in stages:
            faults.append(f"model: {name} is named twice, and would only give the same scores again")
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
                device=config.device,
                rows_per_file=config.spark.rows_per_file,
                readings=scorer.readings,
                with_group_ids=config.ranking.per_group is not None,
                likeness=likeness,
                share=scoring.near_duplicates is not None,
                encoder=scorer.encoder if scoring.keep_states else None,
                listwise=scorer.listwise,
            ),
            top=model.top if isinstance(model, CascadeStageConfig) else None,
            keep=_record(Promise, model.keep) if isinstance(model, CascadeStageConfig) and model.keep else None,
            unit_deadline_s=scoring.unit_deadline_s,
            max_image_bytes=scoring.max_source_bytes,
            caveat=_BATCHED.format(name) if WIDE.name in families and not scoring.reproducible else None,
            allows_instructions=scorer.allows_instructions,
        )
    promises = [stage.keep for stage in stages.values() if stage.keep is not None and stage.keep.sample]
    too_few = [(promise, promise.too_few(promise.sample or 0)) for promise in promises]
    faults += [f"model: keep.sample: to promise {promise} {few}" for promise, few in too_few if few]
    if scoring.keep_states and not any(stage.limits.encoder for stage in stages.values()):
        faults.append("scoring.keep_states: no model of this config has states of documents to keep; leave it out")
    if faults:
        raise ConfigError(faults)
    return tuple(part for stage in stages.values() for part in stage.parts)


def _list_faults(config: Config, model: ModelConfig | RoutedConfig, scorer: ScorerIdentity) -> list[str]:
    """What is wrong with a scorer of lists that is not the last stage of a cascade."""
    last = isinstance(model, CascadeStageConfig) and model.keep is None and model is config.rerankers[-1]
    listers = [family_named(identity.family) for identity in scorer.identities if identity.listwise]
    if last or not listers:
        return []
    advice = "name it last in a cascade, with a `top`"
    if all(family.pointwise for family in listers):
        advice += ", or say pointwise: true beside its path"
    return [f"model: {model_name(model)} scores lists, which another reranker must put in order; {advice}"]


def _likeness(config: Config) -> Likeness | None:
    """What near duplicates are, where a run asks for them. Raises DependencyError."""
    if config.ranking.duplicates == "keep" and config.scoring.near_duplicates is None:
        return None
    require_library()
    return Likeness(config.duplicates.text_similarity, config.duplicates.image_difference)


def _rule(config: Config, stages: Sequence[Stage]) -> RankRule | FusionRule:
    """How logits become lists: those of one reranker, or those of a cascade or an ensemble combined."""
    from lakerank.rerank.rank.combine import FusionRule
    from lakerank.rerank.rank.write import RankRule

    biases, fusion = tuple(stage.logit_bias for stage in stages), None
    ranking = config.ranking
    thresholds, kept = ranking.label_thresholds, (ranking.depth, ranking.per_group, ranking.duplicates)
    if len(stages) == 1:
        return RankRule(biases[0], thresholds, *kept)
    if isinstance(model := config.model, EnsembleConfig):
        weights = model.weights or (1.0,) * len(model.ensemble)
        fusion = Fusion(model.fusion, tuple(weight / sum(weights) for weight in weights), model.k)
    return FusionRule(biases, fusion, thresholds, *kept)


def _record(kind: Callable[..., Record], section: Any, **values: Any) -> Record:
    """A record whose fields are the settings of the same names, but for the values given."""
    names = signature(kind).parameters.keys() - values.keys()
    return kind(**{name: getattr(section, name) for name in names}, **values)
