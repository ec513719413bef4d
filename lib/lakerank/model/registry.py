"""The registry of model families: how config.json names them, what they accept, and which package computes them.

A family is an entry of FAMILIES and a package with two functions: `config.read_info(folder, dtype, family)` and
`load.load(options)`. Packages are named by strings and imported on use, so that planning a job, which needs names and
limits of models alone, imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from lakerank.cost import CostProfile
from lakerank.errors import CheckpointError
from lakerank.limits import Limits
from lakerank.model.inputs import Instructions
from lakerank.records import Reranker

#: A checkpoint's config.json.
CheckpointConfig = Mapping[str, Any]

#: Name of jina-reranker-m0's family, the default of an identity.
M0 = "jina-reranker-m0"

#: Tokens of a text that is read whole, however long.
_ALL_TOKENS = 2**31 - 1


class TokenCounters(Protocol):
    """Tokens through the model since it was loaded, and what whole pairs would have cost."""

    @property
    def computed(self) -> int: ...

    @property
    def pairwise(self) -> int: ...


class LoadedReranker(Reranker, Protocol):
    """A reranker in memory: `fingerprint` names the scorer, `load_id` this loading of it.

    Relevance = sigmoid(logit - `logit_bias`).
    """

    fingerprint: str
    logit_bias: float
    load_id: str

    @property
    def counters(self) -> TokenCounters: ...


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """What a family reads in a checkpoint's JSON files and the headers of its weights.

    `dtype`: what its weights are computed in. `parts`: JSON-able settings that scores depend on, for the fingerprint,
    beyond those that every fingerprint has (weights, config.json, tokenizer, adapter, dtype, bias and limits).
    `encoder`: those of them that the states of documents depend on, where an encoder makes any that can be kept.
    `max_length`, `reads_images`: of this checkpoint, where its family's others have another length or modality.
    """

    dtype: str
    logit_bias: float = 0.0
    parts: Mapping[str, Any] = field(default_factory=dict)
    encoder: Mapping[str, Any] | None = None
    max_length: int | None = None
    reads_images: bool = True


@dataclass(frozen=True, slots=True)
class CheckpointIdentity:
    """A checkpoint at hand: its folder, the scorer's name, the bias of its family, the number of its weights.

    `checksum` lets another process recognise the same files by reading little of them; see `confirm`. `family` is a
    name in the registry, `limits` and `instructions` are those that apply to it. `encoder` names what the states of
    documents depend on, where it makes any that can be kept.
    """

    folder: str
    fingerprint: str
    logit_bias: float
    parameters: int
    checksum: str = ""
    family: str = M0
    limits: Limits = field(default_factory=Limits)
    instructions: Instructions = field(default_factory=Instructions)
    encoder: str | None = None
    accepts_images: bool = True

    def max_document_tokens(self) -> int:
        """Tokens of a document that are read at most."""
        family = family_named(self.family)
        if family.sliding_window:
            return _ALL_TOKENS
        return self.limits.max_length - (0 if family.truncates_document_only else self.limits.max_query_length)

    def cost_profile(self, largest: int) -> CostProfile:
        """How pairs are read; a token's cost is relative to a model of `largest` weights."""
        family = family_named(self.family)
        return CostProfile(family.document_major, self.accepts_images, self.parameters / largest)


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load an identified checkpoint. `adapter`: a folder. `dtype`, `device`: torch's names, never auto."""

    identity: CheckpointIdentity
    adapter: str | None
    dtype: str
    device: str
    host_threads: int
    reproducible: bool

    @property
    def folder(self) -> Path:
        """Where the checkpoint is."""
        return Path(self.identity.folder)


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """Rerankers that are computed in one way.

    Attributes:
        name: what `model.family` calls it.
        package: where its `config.read_info` and `load.load` are.
        models: what it is published as, and what is recognised: for messages.
        protocol: changes when the same weights and limits would give other scores. `NAME/1`, `NAME/2`, …; that of
            jina-reranker-m0 is a bare number, from before there were other families: fingerprints in lakes have it.
        recognises: whether a checkpoint with this config.json is of the family.
        document_major: work on a document is shared by its queries; if not, a pair costs document + query tokens.
        accepts_images: False: a pair with an image is rejected as `modality_unsupported`.
        accepts_adapter: a LoRA adapter may be merged on load.
        accepts_instruction: its prompt has a place for one, and a published default.
        default_max_length: tokens of a pair as published: it bounds `scoring.max_length`, but not `model.max_length`.
            None: no bound.
        positions: the most tokens that a pair can have, by config.json; None: no such bound.
        max_query_fraction: of a pair's tokens, those that a query may have.
        truncates_document_only: a document gets all tokens that its pair's query leaves, not those left by the longest.
        sliding_window: texts longer than a pair may be are read in windows, not cut: a plan counts all of their tokens.
    """

    name: str
    package: str
    models: str
    protocol: int | str
    recognises: Callable[[CheckpointConfig], bool]
    document_major: bool = False
    accepts_images: bool = False
    accepts_adapter: bool = False
    accepts_instruction: bool = False
    default_max_length: int | None = None
    positions: Callable[[CheckpointConfig], int | None] = lambda config: None
    max_query_fraction: float = 0.5
    truncates_document_only: bool = False
    sliding_window: bool = False

    def read_info(self, folder: Path, dtype: str, *, named: bool = True) -> CheckpointInfo:
        """What names the scorer, from JSON files and the weights' headers alone; `dtype` may be auto.

        `named`: by `model.family`; if not, files that say that the score is another's are heeded, where the family has
        a `config.check_detected`. Raises CheckpointError: the checkpoint is not supported.
        """
        package = import_module(f"{self.package}.config")
        if not named and hasattr(package, "check_detected"):
            package.check_detected(folder, self.name)
        return cast(CheckpointInfo, package.read_info(folder, dtype, self.name))

    def as_read(self, info: CheckpointInfo) -> ModelFamily:
        """The family, with the length and the modalities of one checkpoint of it."""
        length, images = info.max_length or self.default_max_length, self.accepts_images and info.reads_images
        return replace(self, default_max_length=length, accepts_images=images)

    def load(self, options: LoadOptions) -> LoadedReranker:
        """The reranker in memory. Raises CheckpointError: weights, adapter or tokenizer do not fit config.json."""
        return cast(LoadedReranker, import_module(f"{self.package}.load").load(options))

    def limits(self, config: CheckpointConfig, limits: Limits, max_length: int | None, source: str) -> Limits:
        """The limits that apply to a checkpoint; those that its scores cannot depend on are the defaults.

        `max_length`: the model's own, instead of `limits.max_length`; None where the config states none. Raises
        CheckpointError: it is more than the network has positions.
        """
        positions = self.positions(config)
        if max_length is not None and positions is not None and max_length > positions:
            raise CheckpointError(f"{source}: model.max_length {max_length}, but {self.name} has {positions} positions")
        bounds = [bound for bound in (limits.max_length, self.default_max_length, positions) if bound is not None]
        length = max_length or min(bounds)
        query = min(limits.max_query_length, int(length * self.max_query_fraction))
        if self.accepts_images:
            return replace(limits, max_length=length, max_query_length=query)
        return Limits(max_length=length, max_query_length=query)


def _architectures(config: CheckpointConfig) -> list[str]:
    architectures = config.get("architectures")
    return [str(name) for name in architectures] if isinstance(architectures, list) else []


def _describes(model_type: str, architecture: str) -> Callable[[CheckpointConfig], bool]:
    """Whether a config.json names a model type and an architecture."""
    return lambda config: config.get("model_type") == model_type and architecture in _architectures(config)


_is_qwen2_vl_chat = _describes("qwen2_vl", "Qwen2VLForConditionalGeneration")


def _is_xlm_roberta(config: CheckpointConfig) -> bool:
    return "XLMRobertaForSequenceClassification" in _architectures(config)


def _is_jina_flash(config: CheckpointConfig) -> bool:
    """Whether a config.json names jina's own implementation of XLM-RoBERTa, which has its own names for weights."""
    return "use_flash_attn" in config or "XLMRobertaFlashConfig" in str(config.get("auto_map"))


def _bert_positions(config: CheckpointConfig) -> int | None:
    positions = config.get("max_position_embeddings")
    return positions if isinstance(positions, int) else None


def _encoder_positions(config: CheckpointConfig) -> int | None:
    """Positions of XLM-RoBERTa count from the padding token's id + 1."""
    positions, padding = config.get("max_position_embeddings"), config.get("pad_token_id", 1)
    return positions - padding - 1 if isinstance(positions, int) and isinstance(padding, int) else None


#: All families. No two recognise the same config.json.
FAMILIES: tuple[ModelFamily, ...] = (
    ModelFamily(
        name=M0,
        package="lakerank.model.jina_m0",
        models="jina-reranker-m0: model_type qwen2_vl with a score head",
        protocol=3,
        document_major=True,
        accepts_images=True,
        accepts_adapter=True,
        recognises=lambda config: config.get("model_type") == "qwen2_vl" and not _is_qwen2_vl_chat(config),
    ),
    ModelFamily(
        name="monoqwen2-vl",
        package="lakerank.model.generative",
        models="MonoQwen2-VL-v0.1: Qwen2VLForConditionalGeneration, with its adapter or merged",
        protocol="monoqwen2-vl/2",
        document_major=True,
        accepts_images=True,
        accepts_adapter=True,
        recognises=_is_qwen2_vl_chat,
    ),
    ModelFamily(
        name="qwen3-vl-reranker",
        package="lakerank.model.generative",
        models="Qwen3-VL-Reranker: Qwen3VLForConditionalGeneration",
        protocol="qwen3-vl-reranker/2",
        accepts_images=True,
        accepts_adapter=True,
        accepts_instruction=True,
        recognises=_describes("qwen3_vl", "Qwen3VLForConditionalGeneration"),
        default_max_length=8192,
    ),
    ModelFamily(
        name="qwen3-reranker",
        package="lakerank.model.generative",
        models="Qwen3-Reranker: Qwen3ForCausalLM",
        protocol="qwen3-reranker/1",
        accepts_adapter=True,
        accepts_instruction=True,
        recognises=_describes("qwen3", "Qwen3ForCausalLM"),
        default_max_length=8192,
    ),
    ModelFamily(
        name="bge-reranker",
        package="lakerank.model.cross_encoder",
        models="bge-reranker-v2-m3, -large, -base: XLMRobertaForSequenceClassification with one label",
        protocol="bge-reranker/3",
        recognises=lambda config: _is_xlm_roberta(config) and not _is_jina_flash(config),
        default_max_length=512,
        positions=_encoder_positions,
        max_query_fraction=0.75,
        truncates_document_only=True,
    ),
    ModelFamily(
        name="jina-reranker-v2",
        package="lakerank.model.cross_encoder",
        models="jina-reranker-v2-base-multilingual: XLMRobertaForSequenceClassification with use_flash_attn",
        protocol="jina-reranker-v2/2",
        recognises=lambda config: _is_xlm_roberta(config) and _is_jina_flash(config),
        default_max_length=1024,
        positions=_encoder_positions,
        sliding_window=True,
    ),
    ModelFamily(
        name="bert-reranker",
        package="lakerank.model.cross_encoder",
        models="minilm-en, ms-marco-MiniLM and others: BertForSequenceClassification with one label",
        protocol="bert-reranker/2",
        recognises=lambda config: "BertForSequenceClassification" in _architectures(config),
        default_max_length=512,
        positions=_bert_positions,
        max_query_fraction=0.75,
        truncates_document_only=True,
    ),
    ModelFamily(
        name="kalm-reranker",
        package="lakerank.model.kalm",
        models="KaLM-Reranker-V1: T5Gemma2ForConditionalGeneration",
        protocol="kalm-reranker/1",
        document_major=True,
        accepts_instruction=True,
        recognises=_describes("t5gemma2", "T5Gemma2ForConditionalGeneration"),
        positions=lambda config: _bert_positions(config["encoder"]["text_config"]),
        default_max_length=1536,
        max_query_fraction=1 / 3,
    ),
    ModelFamily(
        name="modernbert-reranker",
        package="lakerank.model.cross_encoder",
        models="gte-reranker-modernbert, Ettin's and granite's: ModernBERT with a head of one output",
        protocol="modernbert-reranker/1",
        recognises=lambda config: (
            config.get("model_type") == "modernbert"
            and bool({"ModernBertForSequenceClassification", "ModernBertModel"}.intersection(_architectures(config)))
        ),
        positions=_bert_positions,
        max_query_fraction=0.75,
        truncates_document_only=True,
    ),
)


#: The library's own models, for all that no narrower family computes.
WIDE = ModelFamily(
    name="sentence-transformers",
    package="lakerank.model.sentence_transformers",
    models="whatever its CrossEncoder loads without remote code",
    protocol="sentence-transformers/1",
    recognises=lambda config: False,
    accepts_images=True,
    accepts_instruction=True,
    positions=lambda config: (_encoder_positions if "roberta" in str(config.get("model_type")) else _bert_positions)(
        config
    ),
    truncates_document_only=True,
)


def family_of(config: CheckpointConfig, name: str | None, source: str) -> ModelFamily:
    """The family of a checkpoint, which messages call `source`, by its config.json, or the one of that name.

    Raises CheckpointError: no family matches, or several do; the families are listed.
    """
    families = (*FAMILIES, WIDE)
    matching = [family for family in families if (family.recognises(config) if name is None else family.name == name)]
    if len(matching) == 1:
        return matching[0]
    known = "; ".join(f"{family.name} ({family.models})" for family in families)
    if name is not None:
        raise CheckpointError(f"{source}: model.family {name!r} is none of: {known}")
    stated = f"model_type {config.get('model_type')!r}, architectures {_architectures(config)}"
    if matching:
        names = ", ".join(family.name for family in matching)
        raise CheckpointError(f"{source}: {stated} in config.json may be {names}: say which with model.family")
    raise CheckpointError(f"{source}: {stated} in config.json is none of: {known}; say which with model.family")


def family_named(name: str) -> ModelFamily:
    """The family of an identity. Raises CheckpointError: another version of lakerank made the identity."""
    return family_of({}, name, "identity")
