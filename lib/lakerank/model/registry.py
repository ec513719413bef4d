"""The registry of model families: how checkpoints are recognised, what they accept, and which package computes them.

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
from lakerank.limits import Limits, Listwise
from lakerank.model.facts import CheckpointFacts
from lakerank.model.inputs import Instructions
from lakerank.records import ListReranker, Reranker

#: A checkpoint's config.json.
CheckpointConfig = Mapping[str, Any]

#: Whether what a checkpoint says of itself is of a family.
Recogniser = Callable[[CheckpointFacts], bool]

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


class LoadedScorer(Protocol):
    """A scorer in memory, named by its `fingerprint`: relevance = sigmoid(logit - `logit_bias`)."""

    fingerprint: str
    logit_bias: float

    @property
    def counters(self) -> TokenCounters: ...


class LoadedReranker(LoadedScorer, Reranker, Protocol):
    """A scorer of pairs in memory."""


class LoadedListReranker(LoadedScorer, ListReranker, Protocol):
    """A scorer of lists in memory."""


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """What a family reads in a checkpoint's JSON files and the headers of its weights.

    `dtype`: what its weights are computed in. `parts`: JSON-able settings that scores depend on, for the fingerprint,
    beyond those that every fingerprint has (weights, config.json, tokenizer, adapter, dtype, bias and limits).
    `encoder`: those of them that the states of documents depend on, where an encoder makes any that can be kept.
    `of_family`: fields of its ModelFamily that are another for this checkpoint. `listwise`: how it scores lists by
    default. `lengths`: tokens of a query and of a document at most, where they are published, whatever the limits.
    """

    dtype: str
    logit_bias: float = 0.0
    parts: Mapping[str, Any] = field(default_factory=dict)
    encoder: Mapping[str, Any] | None = None
    of_family: Mapping[str, Any] = field(default_factory=dict)
    listwise: Listwise = field(default_factory=Listwise)
    lengths: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class CheckpointIdentity:
    """A checkpoint at hand: its folder, the scorer's name, the bias of its family, the number of its weights.

    `checksum` lets another process recognise the same files by reading little of them; see `confirm`. `family` is a
    name in the registry, `limits` and `instructions` are those that apply to it. `encoder` names what the states of
    documents depend on, where it makes any that can be kept. `listwise`: how it scores lists; None: it scores pairs.
    `document_tokens`: of a document that are read at most; None: what a query leaves of a pair, or others of a list.
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
    document_major: bool = True
    listwise: Listwise | None = None
    document_tokens: int | None = None

    def max_document_tokens(self) -> int:
        """Tokens of a document that are read at most."""
        family = family_named(self.family)
        if self.document_tokens is not None:
            return self.document_tokens
        if self.listwise is not None:
            return self.limits.max_length // (self.listwise.window or 1)
        if family.sliding_window:
            return _ALL_TOKENS
        return self.limits.max_length - (0 if family.truncates_document_only else self.limits.max_query_length)

    def cost_profile(self, largest: int) -> CostProfile:
        """How pairs are read; a token's cost is relative to a model of `largest` weights."""
        return CostProfile(self.document_major, self.accepts_images, self.parameters / largest)


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
        protocol: changes when the same weights and limits would give other scores. `NAME/1`, `NAME/2`, …; that of
            jina-reranker-m0 is a bare number, from before there were other families: fingerprints in lakes have it.
        recognises: whether what a checkpoint says of itself is of the family.
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
        listwise: it scores lists (`LoadedListReranker`), unless it is asked for pairs; its length is a prompt's.
        pointwise: it scores pairs.
    """

    name: str
    package: str
    protocol: int | str
    recognises: Recogniser
    document_major: bool = False
    accepts_images: bool = False
    accepts_adapter: bool = False
    accepts_instruction: bool = False
    default_max_length: int | None = None
    positions: Callable[[CheckpointConfig], int | None] = lambda config: None
    max_query_fraction: float = 0.5
    truncates_document_only: bool = False
    sliding_window: bool = False
    listwise: bool = False
    pointwise: bool = True

    def read_info(self, folder: Path, dtype: str) -> CheckpointInfo:
        """What names the scorer, from JSON files and the weights' headers alone; `dtype` may be auto.

        Raises CheckpointError: the checkpoint is not supported.
        """
        package = import_module(f"{self.package}.config")
        return cast(CheckpointInfo, package.read_info(folder, dtype, self.name))

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
        pair = None if self.listwise else limits.max_length
        bounds = [bound for bound in (pair, self.default_max_length, positions) if bound is not None]
        length = max_length or min(bounds)
        query = min(limits.max_query_length, int(length * self.max_query_fraction))
        if self.accepts_images:
            return replace(limits, max_length=length, max_query_length=query)
        return Limits(max_length=length, max_query_length=query)


def _classifies(model_type: str, architecture: str, head: str) -> Recogniser:
    """Whether a checkpoint is a classifier: the last layer of its head is stored with it, or is a module beside it."""

    def recognises(facts: CheckpointFacts) -> bool:
        if facts.modules not in ((), ("Transformer",)):
            written = facts.settings.get("model_type") == "CrossEncoder" and facts.model_type == model_type
            return written and facts.modules[:2] == ("Transformer", "Pooling") and facts.modules[-1] == "Dense"
        return architecture in facts.architectures and head in facts.heads

    return recognises


_is_xlm_roberta = _classifies("xlm-roberta", "XLMRobertaForSequenceClassification", "classifier.out_proj")


def _is_jina_flash(facts: CheckpointFacts) -> bool:
    """Whether a config.json names jina's own implementation of XLM-RoBERTa, which has its own names for weights."""
    return "use_flash_attn" in facts.config or "XLMRobertaFlashConfig" in str(facts.config.get("auto_map"))


#: Networks of `model.generative`, by config.json's model_type.
LANGUAGE_MODELS: Mapping[str, str] = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
}


def _answers(family: str) -> Recogniser:
    """Whether a checkpoint is a language model whose own files ask and answer as a family of `model.generative`."""

    def recognises(facts: CheckpointFacts) -> bool:
        if LANGUAGE_MODELS.get(str(facts.model_type)) not in facts.architectures or facts.config.get("auto_map"):
            return False
        return bool(import_module("lakerank.model.generative.config").recognises(facts, family))

    return recognises


def _is_kalm(facts: CheckpointFacts) -> bool:
    """Whether a T5Gemma 2 says that it is one, by a file of settings or of code, or by a module of its own."""
    named = facts.files & {"kalm_cross_encoder_config.json", "kalm_reranker.py"}
    return facts.model_type == "t5gemma2" and bool(named or any("KaLM" in kind for kind in facts.modules))


def _bert_positions(config: CheckpointConfig) -> int | None:
    positions = config.get("max_position_embeddings")
    return positions if isinstance(positions, int) else None


def _encoder_positions(config: CheckpointConfig) -> int | None:
    """Positions of XLM-RoBERTa count from the padding token's id + 1."""
    positions, padding = config.get("max_position_embeddings"), config.get("pad_token_id", 1)
    return positions - padding - 1 if isinstance(positions, int) and isinstance(padding, int) else None


def _prompted(name: str, version: int, **fields: Any) -> ModelFamily:
    """A family of `model.generative`. The prompt says whether documents come first, and if it takes instructions."""
    fields = {"accepts_adapter": True, "default_max_length": 8192, "recognises": _answers(name), **fields}
    return ModelFamily(name, "lakerank.model.generative", f"{name}/{version}", **fields)


def _paired(name: str, version: int, recognises: Recogniser, **fields: Any) -> ModelFamily:
    """A family of `model.cross_encoder`."""
    fields = {"max_query_fraction": 0.75, "truncates_document_only": True, "positions": _bert_positions, **fields}
    return ModelFamily(name, "lakerank.model.cross_encoder", f"{name}/{version}", recognises, **fields)


#: All families; docs/models.md says what each is. No two recognise the same checkpoint.
FAMILIES: tuple[ModelFamily, ...] = (
    ModelFamily(
        name=M0,
        package="lakerank.model.jina_m0",
        protocol=4,
        document_major=True,
        accepts_images=True,
        accepts_adapter=True,
        recognises=lambda facts: facts.model_type == "qwen2_vl" and {"score.0", "score.2"} <= set(facts.heads),
    ),
    _prompted("monoqwen2-vl", 3, accepts_images=True, default_max_length=None),
    _prompted("qwen3-vl-reranker", 3, accepts_images=True),
    _prompted("qwen3-reranker", 2),
    _prompted("mxbai-rerank-v2", 2),
    _prompted("zerank-2", 2),
    _prompted("token-logit", 2),
    _paired(
        "bge-reranker",
        3,
        lambda facts: _is_xlm_roberta(facts) and not _is_jina_flash(facts),
        default_max_length=512,
        positions=_encoder_positions,
    ),
    _paired(
        "jina-reranker-v2",
        2,
        lambda facts: _is_xlm_roberta(facts) and _is_jina_flash(facts),
        default_max_length=1024,
        positions=_encoder_positions,
        max_query_fraction=0.5,
        truncates_document_only=False,
        sliding_window=True,
    ),
    _paired(
        "bert-reranker",
        2,
        _classifies("bert", "BertForSequenceClassification", "classifier"),
        default_max_length=512,
    ),
    _paired("modernbert-reranker", 2, _classifies("modernbert", "ModernBertForSequenceClassification", "classifier")),
    ModelFamily(
        name="kalm-reranker",
        package="lakerank.model.kalm",
        protocol="kalm-reranker/2",
        document_major=True,
        accepts_instruction=True,
        recognises=_is_kalm,
        positions=lambda config: _bert_positions(config["encoder"]["text_config"]),
        default_max_length=1536,
        max_query_fraction=1 / 3,
    ),
    ModelFamily(
        name="jina-reranker-v3",
        package="lakerank.model.listwise",
        protocol="jina-reranker-v3/2",
        accepts_instruction=True,
        recognises=lambda facts: facts.model_type == "qwen3" and {"projector.0", "projector.2"} <= set(facts.heads),
        positions=_bert_positions,
        listwise=True,
    ),
    ModelFamily(
        name="list-generation",
        package="lakerank.model.listwise",
        protocol="list-generation/2",
        accepts_images=True,
        accepts_adapter=True,
        recognises=lambda facts: False,
        positions=lambda config: _bert_positions(config.get("text_config") or config),
        default_max_length=8192,
        listwise=True,
        pointwise=False,
    ),
)


def _is_cross_encoder(facts: CheckpointFacts) -> bool:
    """Whether a checkpoint has the head of a classifier, or says that the library wrote it; and has no code."""
    classifies = any(name.endswith("ForSequenceClassification") for name in facts.architectures)
    headed = classifies and any("pooler" not in name for name in facts.heads)
    return (headed or facts.settings.get("model_type") == "CrossEncoder") and not facts.config.get("auto_map")


#: The library's own models, for all that no narrower family computes.
WIDE = ModelFamily(
    name="sentence-transformers",
    package="lakerank.model.sentence_transformers",
    protocol="sentence-transformers/1",
    recognises=_is_cross_encoder,
    accepts_images=True,
    accepts_instruction=True,
    positions=lambda config: (_encoder_positions if config.get("pad_token_id") == 1 else _bert_positions)(config),
    truncates_document_only=True,
)


def family_of(facts: CheckpointFacts, source: str) -> ModelFamily:
    """The family of a checkpoint, which messages call `source`, by what it says of itself.

    Raises CheckpointError: no family agrees, or several do; says what was found, and which families there are.
    """
    matching = [family for family in FAMILIES if family.recognises(facts)]
    if not matching and WIDE.recognises(facts):
        return WIDE
    if len(matching) == 1:
        return matching[0]
    names = f"may be {', '.join(family.name for family in matching)}" if matching else "is no known reranker"
    raise CheckpointError(
        f"{source}: {names} by what its files say: {facts.described()}. To have it scored as one nevertheless, "
        f"whatever its files say, name it in model.family: {_known()}"
    )


def family_named(name: str, source: str = "identity") -> ModelFamily:
    """The family of a name. Raises CheckpointError: there is none, or another version of lakerank made the identity."""
    for family in (*FAMILIES, WIDE):
        if family.name == name:
            return family
    raise CheckpointError(f"{source}: model.family {name!r} is none of: {_known()}")


def _known() -> str:
    return f"{', '.join(family.name for family in (*FAMILIES, WIDE))} (docs/models.md has what each is)"
