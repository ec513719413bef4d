"""What the JSON files of a KaLM-Reranker say of it, and its prompt; torch is not imported, for a plan needs this.

Sources: KaLM-Embedding/KaLM-Reranker-V1-Nano, -Small, -Large and their R2: `kalm_reranker.py`,
`kalm_reranker_utils.py`, `kalm_cross_encoder.py` and the model cards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lakerank.errors import CheckpointError
from lakerank.model.checkpoint import read_json, read_modules, resolve_dtype, stored_tensors
from lakerank.model.config import read_config
from lakerank.model.registry import CheckpointInfo

#: What sentence-transformers' module of the family keeps beside config.json.
SETTINGS_NAME = "kalm_cross_encoder_config.json"

#: Where the weights have the layers of each half, in old and new names.
_LAYERS = {
    "decoder": ("model.decoder.layers.",),
    "encoder": ("model.encoder.layers.", "model.encoder.text_model.layers."),
}


@dataclass(frozen=True, slots=True)
class KalmSettings:
    """How documents are pooled and queries prompted: the mean of `pooling` consecutive tokens' states is kept."""

    pooling: int = 4
    document: str = "<Document>: "
    system: str = (
        "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
        'Note that the answer can only be "yes" or "no".'
    )
    instruction: str = "Given a query, retrieve documents that answer the query."

    def prompt(self, query: str, instruction: str | None = None) -> str:
        """The whole prompt of a query."""
        asked = f"<Instruct>: {instruction or self.instruction}\n<Query>: {query}<end_of_turn>\n"
        return f"<bos><start_of_turn>user\n{self.system}\n\n{asked}<start_of_turn>model\n\n\n\n"


def read_settings(folder: Path) -> KalmSettings:
    """The published settings, or those that the checkpoint states. Raises CheckpointError: they are impossible."""
    file = folder / SETTINGS_NAME
    stated = read_json(file) if file.is_file() else {}
    pooling = stated.get("encoder_chunk_size", KalmSettings().pooling)
    pooling = 1 if pooling is None else pooling
    system = stated.get("system_instruction", KalmSettings().system)
    if type(pooling) is not int or pooling < 1 or not isinstance(system, str):
        raise CheckpointError(f"{file}: encoder_chunk_size {pooling!r:.40} or system_instruction is impossible")
    return KalmSettings(pooling, system=system)


def check_detected(folder: Path, family: str) -> None:
    """Refuse a T5Gemma 2 whose files do not say that it is a KaLM-Reranker. Raises CheckpointError: it may be any."""
    named = any((folder / name).is_file() for name in (SETTINGS_NAME, "kalm_reranker.py"))
    if not named and not any("KaLM" in kind for kind, _ in read_modules(folder)):
        raise CheckpointError(
            f"{folder}: a T5Gemma 2, and neither {SETTINGS_NAME}, kalm_reranker.py nor modules.json says that it is a "
            f"KaLM-Reranker; model.family={family} scores it so nevertheless"
        )


def read_info(folder: Path, dtype: str, family: str) -> CheckpointInfo:
    """What names the scorer beyond what every fingerprint has: settings. What names its encoder are those of documents.

    Raises CheckpointError: config.json describes what is not computed here.
    """
    faults = [*_faults(read_config(folder), stored_tensors(folder))]
    if faults:
        raise CheckpointError(f"{folder}: config.json is no KaLM-Reranker's: {'; '.join(faults)}")
    settings = asdict(read_settings(folder))
    documents = {name: settings[name] for name in ("pooling", "document")}
    return CheckpointInfo(resolve_dtype(folder, dtype), parts={"kalm": settings}, encoder=documents)


def _faults(config: Mapping[str, Any], tensors: Mapping[str, Any]) -> Iterator[str]:
    encoder = config.get("encoder")
    halves = {"encoder": encoder.get("text_config") if isinstance(encoder, Mapping) else None}
    halves |= {"decoder": config.get("decoder")}
    if config.get("model_type") != "t5gemma2" or config.get("tie_word_embeddings") is False:
        yield f"model_type {config.get('model_type')!r}, not 't5gemma2', or embeddings that are not tied"
    for name, half in halves.items():
        if not isinstance(half, Mapping):
            yield f"no settings of the {name}"
            continue
        expected = {"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": half.get("head_dim", 256)}
        expected |= {"attn_logit_softcapping": None, "final_logit_softcapping": None}
        for key, value in expected.items():
            if half.get(key, value) != value:
                yield f"{name}: {key} is {half[key]!r:.40}, not {value!r}"
        if set(half.get("layer_types") or ()) - {"full_attention", "sliding_attention"}:
            yield f"{name}: layer_types other than full_attention and sliding_attention"
        for kind, rope in (half.get("rope_parameters") or {}).items():
            if not isinstance(rope, Mapping) or rope.get("rope_type") not in ("default", "linear"):
                yield f"{name}: rope_parameters of {kind} are neither default nor linear"
        stored = {key.split(".layers.")[1].split(".")[0] for key in tensors if key.startswith(_LAYERS[name])}
        if half.get("num_hidden_layers", 26) != len(stored):
            yield f"{name}: num_hidden_layers is {half.get('num_hidden_layers')}, but the weights have {len(stored)}"
