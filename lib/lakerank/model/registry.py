"""The families of rerankers there are, told apart by a checkpoint's config.json; torch is imported where one is loaded.

A new family is an entry of FAMILIES and a module with its `read` and `load`, imported by the two functions of its entry
and not before: a plan needs the names and limits of models, never their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lakerank.errors import CheckpointError
from lakerank.model.family import CheckpointInfo, Config, LoadedReranker, LoadOptions, ModelFamily
from lakerank.model.generative.prompt import MONO_QWEN2_VL, QWEN3_RERANKER, QWEN3_VL_RERANKER, ChatPrompt


def _describes(model_type: str, architecture: str) -> Callable[[Config], bool]:
    """Whether a config.json names a model type and an architecture."""
    return lambda config: config.get("model_type") == model_type and architecture in _architectures(config)


_is_qwen2_vl_chat = _describes("qwen2_vl", "Qwen2VLForConditionalGeneration")


def _recognises_m0(config: Config) -> bool:
    return config.get("model_type") == "qwen2_vl" and not _is_qwen2_vl_chat(config)


def _read_m0(folder: Path, dtype: str) -> CheckpointInfo:
    from lakerank.model.checkpoint import m0_facts

    return m0_facts(folder, dtype)


def _load_m0(options: LoadOptions) -> LoadedReranker:
    from lakerank.model.jina_m0.load import load

    return load(options)


def _read_asking(prompt: ChatPrompt, model_type: str) -> Callable[[Path, str], CheckpointInfo]:
    def read(folder: Path, dtype: str) -> CheckpointInfo:
        from lakerank.model.generative.checkpoint import generative_facts

        return generative_facts(folder, dtype, prompt, model_type)

    return read


def _load_asking(prompt: ChatPrompt) -> Callable[[LoadOptions], LoadedReranker]:
    def load(options: LoadOptions) -> LoadedReranker:
        from lakerank.model.generative.load import load as load_generative

        return load_generative(options, prompt)

    return load


def _recognises_bge(config: Config) -> bool:
    return "XLMRobertaForSequenceClassification" in _architectures(config) and not _is_jina_flash(config)


def _recognises_jina_v2(config: Config) -> bool:
    return "XLMRobertaForSequenceClassification" in _architectures(config) and _is_jina_flash(config)


def _is_jina_flash(config: Config) -> bool:
    """Whether a config.json names jina's own implementation of XLM-RoBERTa, which has names of its own for weights."""
    return "use_flash_attn" in config or "XLMRobertaFlashConfig" in str(config.get("auto_map"))


def _read_encoder(folder: Path, dtype: str) -> CheckpointInfo:
    from lakerank.model.cross_encoder.shape import encoder_facts

    return encoder_facts(folder, dtype)


def _load_bge(options: LoadOptions) -> LoadedReranker:
    from lakerank.model.cross_encoder.load import load_bge

    return load_bge(options)


def _load_jina_v2(options: LoadOptions) -> LoadedReranker:
    from lakerank.model.cross_encoder.load import load_jina_v2

    return load_jina_v2(options)


def _encoder_positions(config: Config) -> int | None:
    """Positions of XLM-RoBERTa count from the padding token's id + 1."""
    positions, padding = config.get("max_position_embeddings"), config.get("pad_token_id", 1)
    return positions - padding - 1 if isinstance(positions, int) and isinstance(padding, int) else None


#: Name of the family that a checkpoint is of where nobody says.
M0 = "jina-reranker-m0"

#: All families. No two recognise the same config.json.
FAMILIES: tuple[ModelFamily, ...] = (
    ModelFamily(
        name=M0,
        models="jina-reranker-m0: model_type qwen2_vl with a score head",
        protocol=2,
        document_major=True,
        accepts_images=True,
        accepts_adapter=True,
        recognises=_recognises_m0,
        read=_read_m0,
        load=_load_m0,
    ),
    ModelFamily(
        name="monoqwen2-vl",
        models="MonoQwen2-VL-v0.1: Qwen2VLForConditionalGeneration, with its adapter or merged",
        protocol="monoqwen2-vl/1",
        document_major=True,
        accepts_images=True,
        accepts_adapter=True,
        recognises=_is_qwen2_vl_chat,
        read=_read_asking(MONO_QWEN2_VL, "qwen2_vl"),
        load=_load_asking(MONO_QWEN2_VL),
    ),
    ModelFamily(
        name="qwen3-vl-reranker",
        models="Qwen3-VL-Reranker: Qwen3VLForConditionalGeneration",
        protocol="qwen3-vl-reranker/1",
        document_major=False,
        accepts_images=True,
        accepts_adapter=True,
        recognises=_describes("qwen3_vl", "Qwen3VLForConditionalGeneration"),
        read=_read_asking(QWEN3_VL_RERANKER, "qwen3_vl"),
        load=_load_asking(QWEN3_VL_RERANKER),
        usual_length=8192,
    ),
    ModelFamily(
        name="qwen3-reranker",
        models="Qwen3-Reranker: Qwen3ForCausalLM",
        protocol="qwen3-reranker/1",
        document_major=False,
        accepts_images=False,
        accepts_adapter=True,
        recognises=_describes("qwen3", "Qwen3ForCausalLM"),
        read=_read_asking(QWEN3_RERANKER, "qwen3"),
        load=_load_asking(QWEN3_RERANKER),
        usual_length=8192,
    ),
    ModelFamily(
        name="bge-reranker",
        models="bge-reranker-v2-m3, -large, -base: XLMRobertaForSequenceClassification with one label",
        protocol="bge-reranker/2",
        document_major=False,
        accepts_images=False,
        accepts_adapter=False,
        recognises=_recognises_bge,
        read=_read_encoder,
        load=_load_bge,
        usual_length=512,
        positions=_encoder_positions,
        query_share=0.75,
        cuts_document_alone=True,
    ),
    ModelFamily(
        name="jina-reranker-v2",
        models="jina-reranker-v2-base-multilingual: XLMRobertaForSequenceClassification with use_flash_attn",
        protocol="jina-reranker-v2/1",
        document_major=False,
        accepts_images=False,
        accepts_adapter=False,
        recognises=_recognises_jina_v2,
        read=_read_encoder,
        load=_load_jina_v2,
        usual_length=1024,
        positions=_encoder_positions,
        reads_whole=True,
    ),
)


def family_of(config: Config, name: str | None, source: str) -> ModelFamily:
    """The family of a checkpoint by its config.json, or the one of that name.

    Args:
        source: where the checkpoint is, for messages.

    Raises:
        CheckpointError: none is, or several are; the families are listed.
    """
    found = [one for one in FAMILIES if (one.recognises(config) if name is None else one.name == name)]
    if len(found) == 1:
        return found[0]
    known = "; ".join(f"{one.name} ({one.models})" for one in FAMILIES)
    if name is not None:
        raise CheckpointError(f"{source}: model.family {name!r} is none of: {known}")
    stated = f"model_type {config.get('model_type')!r}, architectures {list(_architectures(config))}"
    if found:
        names = ", ".join(one.name for one in found)
        raise CheckpointError(f"{source}: {stated} in config.json may be {names}: say which with model.family")
    raise CheckpointError(f"{source}: {stated} in config.json is none of: {known}; say which with model.family")


def family_named(name: str) -> ModelFamily:
    """The family of an identity.

    Raises:
        CheckpointError: another version of lakerank made the identity.
    """
    return family_of({}, name, "identity")


def _architectures(config: Config) -> Sequence[str]:
    stated = config.get("architectures")
    return [str(name) for name in stated] if isinstance(stated, list) else []
