"""The config file: its settings with their defaults.

Config stops at the command line: `lakerank.cli` turns it into records, and nothing below takes a config object.
conf/reference.yaml documents every setting.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WrapValidator,
    field_validator,
    model_validator,
)

from lakerank.audit import Bounds, Share
from lakerank.credentials import StorageOptions, is_secret, redacted
from lakerank.errors import ConfigError
from lakerank.limits import Frames, Listwise, LogitScale, Resize
from lakerank.settings import Section, apply_override, read_yaml, validate


def _check_device(device: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise ValueError(f"expected auto, cpu, cuda, cuda:1 and so on, or mps (found {json.dumps(device)})")
    return device


Device = Annotated[str, AfterValidator(_check_device)]

#: A number, or `auto` (null) for what suits the device.
Auto = Annotated[int | None, BeforeValidator(lambda value: None if value == "auto" else value)]

#: A folder, which may begin with `~`, or a name.
Folder = Annotated[str, AfterValidator(lambda name: os.path.expanduser(name))]  # noqa: PTH111 - raises nothing

#: Names the bundled checkpoint, and each table of the bundled lake.
EMBEDDED = "embedded"

#: The sections without which there is nothing to do, where a config leaves them out.
DEFAULTS: Mapping[str, Any] = {
    "lake": dict.fromkeys(("documents", "queries", "candidates", "qrels"), EMBEDDED) | {"output": "out/demo"},
    "model": {"path": EMBEDDED},
}

_PACKAGE = Path(__file__).parent
_DEMO_LAKE = _PACKAGE / "ingest" / "demo_lake"


class ColumnsConfig(Section):
    """Columns of tables that have other names: dotted paths in the files by the contract's names."""

    documents: dict[str, str] = Field(default={})
    queries: dict[str, str] = Field(default={})
    candidates: dict[str, str] = Field(default={})
    qrels: dict[str, str] = Field(default={})

    @model_validator(mode="after")
    def _known(self) -> ColumnsConfig:
        from lakerank import schemas

        faults = []
        for table, columns in self:
            names = getattr(schemas, table.upper()).names + [field.name for field in schemas.MORE_COLUMNS[table]]
            unknown = [name for name in columns if name not in names]
            faults += [f"{table}.{name}: no such column; there are {', '.join(names)}" for name in unknown]
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def by_address(self, tables: Section) -> dict[str, dict[str, str]]:
        """The columns of each table that has some of other names, by the address that `tables` has.

        Raises:
            ValueError: a table that stands for two has two names for one column.
        """
        located: dict[str, dict[str, str]] = {}
        for table, columns in self:
            known = located.setdefault(getattr(tables, table) or "", {}) if columns else {}
            for name, path in columns.items():
                if known.setdefault(name, path) != path:
                    raise ValueError(
                        f"columns.{table}.{name}: another table of the same address has {known[name]!r} for it; name "
                        "one of them by another address, as folder/*.parquet for folder"
                    )
        return located


class LakeConfig(Section):
    """The tables and the folder for the output.

    A table is a file, a folder or a glob of Parquet at any URI that fsspec opens, or `embedded`: the bundled lake's.
    Images by address are read below `image_roots`, in object stores, and from `image_hosts`.
    """

    documents: str
    queries: str
    candidates: str
    qrels: str | None = None
    output: str
    ranked_table: str | None = None
    ranked_table_mode: Literal["overwrite", "append"] = "overwrite"
    columns: ColumnsConfig = ColumnsConfig()
    image_roots: tuple[Folder, ...] = ()
    image_hosts: tuple[str, ...] = ()
    storage: StorageOptions = StorageOptions()

    @model_validator(mode="after")
    def _one_meaning(self) -> LakeConfig:
        self.columns.by_address(self.located())
        tables = (self.documents, self.queries, self.candidates, self.qrels or "")
        if self.ranked_table in [address.partition("@")[0] for address in tables]:
            raise ValueError(f"ranked_table: {self.ranked_table} is a table that is read: name another")
        return self

    def located(self) -> LakeConfig:
        """The same with the paths of the bundled lake's tables."""
        tables = ("documents", "queries", "candidates", "qrels")
        paths = {name: str(_DEMO_LAKE / f"{name}.parquet") for name in tables if getattr(self, name) == EMBEDDED}
        return self.model_copy(update=paths)


class SourceConfig(Section):
    """What `lakerank ingest` reads where no SOURCE is named: a folder of documents, a file of queries, and how."""

    folder: Folder | None = None
    queries: Folder | None = None
    pdf_content: Literal["image", "text", "both"] = "image"
    chunk: int | None = Field(default=None, ge=100)
    chunk_overlap: int = Field(default=0, ge=0)


def _check_itself(value: Any, validate: Callable[[Any], Any]) -> Any:
    """Faults that a record finds in itself as faults of a setting."""
    try:
        return validate(value)
    except ConfigError as error:
        raise ValueError(str(error)) from None


class ModelConfig(Section):
    """A checkpoint: a folder, a hub id with its revision, or `embedded`.

    `family` overrides the architecture that its config.json names; `max_length` (tokens of a pair) overrides
    `scoring.max_length`. `instruction` is that of queries without their own; `ignore_instructions` passes over theirs.
    `listwise` is how lists are scored by a model that does, which `pointwise` asks for pairs.
    """

    path: Folder
    revision: str | None = None
    adapter: Folder | None = None
    adapter_revision: str | None = None
    family: str | None = None
    max_length: int | None = Field(default=None, ge=64)
    instruction: str | None = None
    ignore_instructions: bool = False
    pointwise: bool = False
    listwise: Annotated[Listwise, WrapValidator(_check_itself)] | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Device = "auto"


@dataclass(frozen=True, slots=True)
class CalibrationConfig(LogitScale):
    """A `LogitScale` with validated values."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    bias: Annotated[float, Field(allow_inf_nan=False)]


class RouteConfig(ModelConfig):
    """The reranker of one kind of pairs."""

    calibration: CalibrationConfig = Field(default=None, validate_default=True)

    @field_validator("calibration", mode="before")
    @classmethod
    def _required(cls, value: Any) -> Any:
        if value is None:
            raise ValueError(
                "missing: one list holds pairs of both models, whose logits are on scales of their own; say "
                "{scale: …, bias: …} for each (logit = scale * raw + bias), see docs/models.md for how to get them"
            )
        return value


class RoutedConfig(Section):
    """One reranker for pairs of texts, another for pairs with an image on either side."""

    text: RouteConfig
    image: RouteConfig

    @model_validator(mode="after")
    def _one_device(self) -> RoutedConfig:
        _check_devices((self.text, self.image))
        return self


class KeepConfig(Section):
    """A guarantee: how much of its own first `of_top` documents a stage is to read, with what confidence."""

    of_top: int = Field(default=10, ge=1)
    recall: float = Field(gt=0, le=0.9999)
    confidence: float = Field(default=0.95, gt=0, le=0.9999)
    sample: int | None = Field(default=None, ge=1)
    from_run: str | None = None
    shift_level: float = Field(default=0.01, gt=0, lt=1)
    otherwise: Literal["all", "stop"] = "all"


class CascadeStageConfig(ModelConfig):
    """A stage of a cascade: of each query's documents in the stage before it scores the `top`, or what it takes to
    `keep` a promise; the first scores all.
    """

    top: int | None = Field(default=None, ge=1)
    keep: KeepConfig | None = None


class EnsembleConfig(Section):
    """Rerankers that each score all pairs, and how their lists are fused."""

    ensemble: tuple[ModelConfig, ...]
    fusion: Literal["reciprocal_rank", "weighted"] = "reciprocal_rank"
    k: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    weights: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> EnsembleConfig:
        if len(self.ensemble) < 2:
            raise ValueError("ensemble: two rerankers or more; one alone is named without a list")
        _check_devices(self.ensemble)
        if self.weights is not None and len(self.weights) != len(self.ensemble):
            raise ValueError(f"weights: {len(self.weights)} for {len(self.ensemble)} rerankers; give one for each")
        if self.weights is not None and not any(self.weights):
            raise ValueError("weights: all are 0")
        if self.weights is not None and self.fusion == "reciprocal_rank":
            raise ValueError("weights: reciprocal_rank has none; leave them out, or set fusion: weighted")
        return self


def _check_stages(stages: tuple[CascadeStageConfig, ...]) -> tuple[CascadeStageConfig, ...]:
    if len(stages) < 2:
        raise ValueError("a list is a cascade of two rerankers or more; one alone is named without a list")
    _check_devices(stages)
    for name in ("top", "keep"):
        if getattr(stages[0], name) is not None:
            raise ValueError(f"0.{name}: the first reranker scores every candidate; leave it out")
    unclear = [str(place) for place, stage in enumerate(stages[1:], 1) if (stage.top is None) == (stage.keep is None)]
    if unclear:
        raise ValueError(
            f"{', '.join(unclear)}: which documents of the stage before does it score? Give either `top`, their number "
            "for a query, or `keep`, what its lists are to be worth"
        )
    tops = [stage.top or (stage.keep.of_top if stage.keep else 0) for stage in stages[1:]]
    if tops != sorted(tops, reverse=True):
        raise ValueError(f"top may not rise from stage to stage: {tops}")
    return stages


def _check_devices(models: Sequence[ModelConfig]) -> None:
    devices = dict.fromkeys(model.device for model in models)
    if len(devices) > 1:
        raise ValueError(f"device must be the same for all models of a run, found {', '.join(devices)}")


def _shape(value: Any) -> str:
    """The tag of the shape that a `model:` has."""
    if isinstance(value, list | tuple):
        return "<cascade>"
    keys = value.keys() if isinstance(value, dict) else type(value).model_fields if isinstance(value, Section) else ()
    if "ensemble" in keys:
        return "<ensemble>"
    return "<routed>" if "text" in keys or "image" in keys else "<single>"


Cascade = Annotated[tuple[CascadeStageConfig, ...], AfterValidator(_check_stages)]

#: The shapes of `model:`: one reranker; one for texts and one for images; a cascade; an ensemble.
AnyModel = Annotated[
    Annotated[ModelConfig, Tag("<single>")]
    | Annotated[RoutedConfig, Tag("<routed>")]
    | Annotated[Cascade, Tag("<cascade>")]
    | Annotated[EnsembleConfig, Tag("<ensemble>")],
    Discriminator(_shape),
]


class ScoringConfig(Section):
    """Limits of a pair's size, and sizes of work units. Lengths are in tokens."""

    max_length: int = Field(default=10240, ge=64)
    max_query_length: int = Field(default=512, ge=16)
    min_pixels: int = Field(default=3136, ge=784)
    max_pixels: int = Field(default=602112, ge=784)
    max_source_pixels: int = Field(default=178_956_970, ge=1)
    max_source_bytes: int = Field(default=256 * 2**20, ge=1)
    frames: Frames = "first"
    resize: Resize = "pillow"
    reproducible: bool = True
    host_threads: Auto = Field(default=None, ge=1)
    device_threads: int | None = Field(default=None, ge=1)
    max_queries_per_group: int = Field(default=512, ge=1)
    unit_tokens: Auto = Field(default=None, ge=1)
    unit_deadline_s: float = Field(default=600.0, gt=0)
    keep_states: bool = False
    calibration: str | None = None
    near_duplicates: Literal["share"] | None = None

    @model_validator(mode="after")
    def _consistent_limits(self) -> ScoringConfig:
        if self.max_query_length * 2 > self.max_length:
            raise ValueError(
                f"max_query_length {self.max_query_length} is more than half of max_length {self.max_length}: "
                "no room is left for the document; lower max_query_length or raise max_length"
            )
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is above max_pixels {self.max_pixels}")
        return self


class RankingConfig(Section):
    """Documents kept a query: so many of a group, then the first `depth` (null: all). A document's label counts the
    thresholds its relevance reaches.
    """

    duplicates: Literal["keep", "mark", "collapse"] = "keep"
    per_group: int | None = Field(default=None, ge=1)
    depth: int | None = Field(default=None, ge=1)
    label_thresholds: tuple[Share, ...] = (0.25, 0.5, 0.75)

    @model_validator(mode="after")
    def _ascending(self) -> RankingConfig:
        if list(self.label_thresholds) != sorted(set(self.label_thresholds)):
            raise ValueError(f"label_thresholds must rise: {list(self.label_thresholds)}")
        if len(self.label_thresholds) > 127:
            raise ValueError("label_thresholds: at most 127, a label is an int8")
        return self


class DuplicatesConfig(Section):
    """What near duplicates are: the least similarity of texts, the largest difference of small images (0 to 255)."""

    text_similarity: float = Field(default=0.7, ge=0.3, le=1)
    image_difference: float = Field(default=14.0, ge=0, le=64)


#: Bounds of the audit where a config says nothing of them.
BOUNDS: Mapping[str, Any] = {
    "max_lost_queries": 0.2, "max_lost_pairs": 0.2, "max_reject_rate": 0.01, "max_unranked_queries": 0.01,
    "max_score_drift": 0.25, "max_ndcg_drop": 0.01,
}  # fmt: skip

_Audit = Annotated[
    Bounds, BeforeValidator(lambda audit: {**BOUNDS, **audit} if isinstance(audit, dict) else audit)
]  # fmt: skip


class SparkConfig(Section):
    """`conf` holds Spark properties; those that spark-submit sets take precedence.

    `local_pairs`: up to so many rows of candidates and of documents a job runs in its own process; 0: always in Spark.
    """

    app_name: str = "lakerank"
    partitions: int | None = Field(default=None, ge=1)
    rows_per_file: int = Field(default=1_000_000, ge=1)
    local_pairs: int = Field(default=30_000, ge=0)
    conf: dict[str, str | int | float | bool] = Field(default={})

    @field_validator("conf", mode="before")
    @classmethod
    def _dotted(cls, conf: Any) -> Any:
        for name, value in conf.items() if isinstance(conf, dict) else ():
            if isinstance(value, dict | list) or value is None:
                raise ValueError(f"{name}: a property is one dotted name with a value, such as spark.master: local[2]")
        return conf


class Config(Section):
    """A whole config file."""

    source: SourceConfig = SourceConfig()
    lake: LakeConfig
    model: AnyModel
    scoring: ScoringConfig = ScoringConfig()
    ranking: RankingConfig = RankingConfig()
    duplicates: DuplicatesConfig = DuplicatesConfig()
    audit: _Audit = Field(default={}, validate_default=True)
    spark: SparkConfig = SparkConfig()

    @property
    def rerankers(self) -> tuple[ModelConfig | RoutedConfig, ...]:
        """All rerankers that `model:` names, in its order; several in a cascade or an ensemble."""
        if isinstance(self.model, tuple):
            return self.model
        return self.model.ensemble if isinstance(self.model, EnsembleConfig) else (self.model,)

    @property
    def device(self) -> str:
        """The device of all of the run's models."""
        first = self.rerankers[0]
        return first.text.device if isinstance(first, RoutedConfig) else first.device

    def to_yaml(self) -> str:
        """The config as resolved, every value spelled out, but for Spark's properties that hold a secret."""
        settings = self.model_dump(mode="json")
        conf = settings["spark"]["conf"].items()
        shown = {name: value for name, value in conf if not is_secret(name) and redacted(str(value)) == str(value)}
        settings["spark"]["conf"] = shown
        return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML config and apply `section.key=value` overrides, whose values are YAML.

    Raises:
        ConfigError: the file cannot be read or is not YAML; or its faults, all at once.
    """
    return resolve_config(read_yaml(path), overrides, source=str(path))


def resolve_config(values: Mapping[str, Any], overrides: Sequence[str] = (), source: str = "config") -> Config:
    """Fill in defaults, apply overrides to parsed YAML and validate the whole.

    Raises:
        ConfigError: all faults at once.
    """
    complete = deepcopy({**DEFAULTS, **values})
    faults = [fault for override in overrides if (fault := apply_override(Config, complete, override))]
    return validate(Config, complete, faults, source, overrides)


def bundled_config(name: str) -> Path | None:
    """The file of a config that is installed with the package, by its name: `demo` for conf/demo.yaml."""
    # In a wheel conf/ is in the package, in a clone beside lib/.
    files = (folder / "conf" / f"{name}.yaml" for folder in (_PACKAGE, _PACKAGE.parents[1]))
    return next((file for file in files if Path(name).name == name and file.is_file()), None)
