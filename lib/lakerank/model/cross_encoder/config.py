"""What the JSON files of a cross-encoder say of it; torch is not imported here, for a plan needs it too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lakerank.errors import CheckpointError
from lakerank.model.checkpoint import file_hash, module_files, read_modules, read_optional, resolve_dtype
from lakerank.model.config import read_config
from lakerank.model.cross_encoder.head import read_head
from lakerank.model.registry import CheckpointInfo

_POSITIVE = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")

#: Settings and the values that are computed here; transformers takes the first where one is left out.
_BERT = {"hidden_act": ("gelu",), "position_embedding_type": ("absolute",), "is_decoder": (False, None)}
_MODERN = {
    **dict.fromkeys(("hidden_activation", "classifier_activation"), ("gelu",)),
    **dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias"), (False,)),
    "classifier_bias": (False, True),
    "classifier_pooling": ("cls", "mean"),
}

#: Kinds of ModernBERT's layers, where older files have the base of their rotary embeddings, and its default.
GLOBAL, LOCAL = "full_attention", "sliding_attention"
_THETAS = {GLOBAL: ("global_rope_theta", 160_000.0), LOCAL: ("local_rope_theta", 10_000.0)}


def check_config(config: Mapping[str, Any], source: str, *, labels: bool = True) -> None:
    """Refuse a config.json that describes no cross-encoder; `labels`: it is also its head's.

    Raises CheckpointError: it lacks a size, or describes what is not computed here.
    """
    sizes = {name: config.get(name) for name in _POSITIVE}
    faults = [f"{name} is {size!r}" for name, size in sizes.items() if not isinstance(size, int) or size < 1]
    count = config.get("num_labels", len(config.get("id2label") or {0: ""}))
    if labels and count != 1:
        faults.append(f"{count} labels, not the one of a relevance score")
    if not faults and config["hidden_size"] % config["num_attention_heads"]:
        faults.append(f"hidden_size {config['hidden_size']} does not divide by {config['num_attention_heads']} heads")
    modern = config.get("model_type") == "modernbert"
    values = {name: (config.get(name, known[0]), known) for name, known in (_MODERN if modern else _BERT).items()}
    faults += [f"{name} is {value!r}, none of {known}" for name, (value, known) in values.items() if value not in known]
    faults += _layer_faults(config) if modern else ()
    if faults:
        raise CheckpointError(f"{source}: config.json is no cross-encoder's: {'; '.join(faults)}")


def _layer_faults(config: Mapping[str, Any]) -> Iterator[str]:
    """Of what config.json says of ModernBERT's layers."""
    kinds, layers = config.get("layer_types"), config.get("num_hidden_layers")
    if kinds and not (isinstance(kinds, list) and len(kinds) == layers and {*map(str, kinds)} <= {*_THETAS}):
        yield f"layer_types is not {GLOBAL!r} or {LOCAL!r} for each of {layers} layers"
    rope = config.get("rope_parameters") or {}
    parts = rope.values() if isinstance(rope, Mapping) and rope.keys() <= _THETAS.keys() else [None]
    plain = [isinstance(part, Mapping) and part.get("rope_type", "default") == "default" for part in parts]
    if config.get("rope_scaling") or not all(plain):
        yield f"rope_scaling, or rope_parameters that are not of rope_type 'default' for {GLOBAL!r} and {LOCAL!r}"
    elif not all(isinstance(theta := _theta(config, kind), int | float) and theta > 0 for kind in _THETAS):
        yield "a rope_theta is no positive number"


def _theta(config: Mapping[str, Any], kind: str) -> Any:
    key, default = _THETAS[kind]
    return (config.get("rope_parameters") or {}).get(kind, {}).get("rope_theta", config.get(key, default))


def modern_layers(config: Mapping[str, Any]) -> list[tuple[float, int | None]]:
    """Of each of ModernBERT's layers the base of its rotary embeddings, and how far a token sees to either side.

    None: it sees the whole sequence. Source: transformers, `ModernBertConfig`.
    """
    every, window = config.get("global_attn_every_n_layers") or 3, (config.get("local_attention") or 128) // 2
    kinds = config.get("layer_types") or [LOCAL if n % every else GLOBAL for n in range(config["num_hidden_layers"])]
    return [(float(_theta(config, kind)), window if kind == LOCAL else None) for kind in kinds]


def check_files(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse what sentence-transformers would compute otherwise, by the files that it writes.

    Raises CheckpointError: there is a default prompt, an activation whose values are neither logits nor their sigmoid,
    or a treatment of texts that is not done here.
    """
    files = (folder / f"{name}.json" for name in ("config_sentence_transformers", "sentence_bert_config"))
    written, network = map(read_optional, files)
    nested = config.get("sentence_transformers") or {}
    activation = (
        written.get("activation_fn")
        or nested.get("activation_fn")
        or config.get("sbert_ce_default_activation_function")
    )
    faults = []
    if activation and str(activation).rpartition(".")[2] not in ("Identity", "Sigmoid"):
        faults.append(f"activation {activation}, not Identity or Sigmoid")
    if written.get("default_prompt_name"):
        faults.append(f"a prompt by default, {written['default_prompt_name']!r}")
    faults += [f"{name} {network[name]!r}" for name in ("do_lower_case", "processing_kwargs") if network.get(name)]
    if faults:
        said, advice = "; ".join(faults), "model.family=sentence-transformers has that library compute it"
        raise CheckpointError(f"{folder}: sentence-transformers' files say what is not computed here: {said}; {advice}")


def read_info(folder: Path, dtype: str, family: str) -> CheckpointInfo:
    """The dtype of a cross-encoder, whose relevance is the sigmoid of its logit: it has no bias.

    Raises CheckpointError: its files describe what is not computed here.
    """
    config = read_config(folder)
    check_config(config, str(folder), labels=len(read_modules(folder)) < 2)
    check_files(folder, config)
    head = read_head(folder, config)
    parts = {} if head.stored else {"head": [file_hash(file) for file in module_files(folder)]}
    return CheckpointInfo(resolve_dtype(folder, dtype), parts=parts)
