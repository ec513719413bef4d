"""What a checkpoint's files say to sentence-transformers, and what is refused; a plan needs it, without torch.

A checkpoint must name neither Python nor files of others: modules.json and activations are import paths, and some
settings of transformers are folders or hub ids. What is left is data that the library and transformers read themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lakerank.errors import CheckpointError
from lakerank.model.checkpoint import file_hash, read_header, read_json, read_modules, resolve_dtype
from lakerank.model.registry import CheckpointInfo

#: Modules of the library that have no others within and whose weights may be safetensors, by their import paths.
_MODULE = re.compile(
    r"sentence_transformers(\.\w+)*\.(Transformer|Pooling|Dense|LayerNorm|Normalize|Dropout|LogitScore)"
)

#: The library calls what an activation's import path names.
_ACTIVATION = re.compile(r"torch\.nn(\.\w+)*\.[A-Z]\w*")

_SETTINGS = "config_sentence_transformers.json"
_TRANSFORMER = re.compile(r"sentence_(bert|roberta|distilbert|camembert|albert|xlm-roberta|xlnet)_config\.json")
_READ = (
    *(_SETTINGS, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
)
_PROMPT_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "additional_chat_templates/*.jinja")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")

#: By these, transformers would read another folder, run code of others, or compute something else.
_FOREIGN = (
    *("tokenizer_name_or_path", "audio_tokenizer", "code_revision", "device_map", "gguf_file", "quantization_config"),
    "base_model_name_or_path",
)


def read_info(folder: Path, dtype: str, family: str) -> CheckpointInfo:
    """The dtype, length and modalities of a checkpoint, and the files and the version that its scores depend on.

    Raises CheckpointError: the library is not installed; a file is damaged, pickled, or names code or other files.
    """
    modules = read_modules(folder)
    if faults := [*_faults(folder, modules)]:
        raise CheckpointError(f"{folder}: not for {family}: {'; '.join(faults)}")
    folders = {folder, *(place for _, place in modules)}
    weights = [file for place in sorted(folders - {folder}) for file in sorted(place.glob("*.safetensors"))]
    for file in weights:
        read_header(file)  # a truncated one is refused before planning
    files = {file for place in folders for pattern in _PROMPT_FILES for file in place.glob(pattern) if file.is_file()}
    files -= {folder / "config.json", folder / "tokenizer.json"}
    stated, transformer = _stated(folder)
    return CheckpointInfo(
        resolve_dtype(folder, dtype),
        parts={
            "library": _library_version(folder),
            "files": {str(file.relative_to(folder)): file_hash(file) for file in sorted({*files, *weights})},
        },
        max_length=_length(stated["tokenizer_config.json"], transformer),
        reads_images=_reads_images(stated, transformer, bool(modules)),
    )


def _library_version(folder: Path) -> str:
    """Major and minor version: scores may change with either."""
    try:
        return ".".join(version("sentence-transformers").split(".")[:2])
    except PackageNotFoundError as error:
        install = 'pip install "lakerank[sentence-transformers]"'
        raise CheckpointError(f"{folder}: this family is computed by sentence-transformers: {install}") from error


def _stated(folder: Path) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The JSON files of a checkpoint that the library reads, {} for those that are not there, and the Transformer's.

    Raises CheckpointError: one is not JSON.
    """
    files = {name: _optional(folder / name) for name in _READ}
    transformer = [read_json(file) for file in sorted(folder.glob("*.json")) if _TRANSFORMER.fullmatch(file.name)]
    return files, transformer[0] if transformer else {}


def _optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _faults(folder: Path, modules: Sequence[tuple[str, Path]]) -> Iterator[str]:
    """What of a checkpoint's files is refused."""
    config, (stated, transformer) = read_json(folder / "config.json"), _stated(folder)
    parts = {"config.json": config, "settings of the Transformer": transformer, **stated}
    if (folder / "adapter_config.json").is_file():
        yield "adapter_config.json names another checkpoint; merge the adapter first"
    for number, (kind, place) in enumerate(modules):
        parts[f"{place.name}/config.json"] = _optional(place / "config.json") if number else {}
        yield from (f"modules.json: {kind!r:.80} {fault}" for fault in _module_faults(folder, number, kind, place))
    for name, values in parts.items():
        yield from (f"{name}: {fault}" for fault in _setting_faults(values))
    if (labels := _labels(config, modules, parts)) != 1:
        yield f"{labels} labels, not the one of a relevance score"


def _module_faults(folder: Path, number: int, kind: str, place: Path) -> Iterator[str]:
    """What is refused of a module, by its import path and its folder."""
    if not _MODULE.fullmatch(kind):
        yield "is no module of the library that is run here"
    if place.parent != folder and (number or place != folder):
        yield "is not in a folder of the checkpoint"
    if kind.endswith(".Transformer") != (number == 0) or (number == 0 and place != folder):
        yield "is not the only Transformer, first and in the checkpoint's own folder"
    pickles = [file.name for pattern in _PICKLES for file in place.glob(pattern)]
    if number and pickles and not (place / "model.safetensors").is_file():
        yield f"has only {pickles[0]}, which could run code when read; model.safetensors is needed"


def _setting_faults(values: Mapping[str, Any]) -> Iterator[str]:
    """Settings that name code or files of others, at any depth."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _setting_faults(value)
        if key in _FOREIGN and value:
            yield f"{key} is not read here"
        elif "attn_implementation" in key and value not in (None, "eager", "sdpa"):
            yield f"{key} is {value!r:.80}, not 'eager' or 'sdpa'"
        elif "activation_f" in key and str(value).startswith("torch.") and not _ACTIVATION.fullmatch(str(value)):
            yield f"{key} is {value!r:.80}, no layer of torch.nn"


def _labels(config: Mapping[str, Any], modules: Sequence[tuple[str, Path]], parts: Mapping[str, Any]) -> object:
    """Scores of a pair, by the files: the library makes one of a network that is no classifier yet."""
    if len(modules) > 1:
        last = parts.get(f"{modules[-1][1].name}/config.json") or {}
        return last.get("out_features", 1) if last.get("module_output_name") == "scores" else 1
    if not any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or ()):
        return 1
    return config.get("num_labels") or len(config.get("id2label") or (0, 1))


def _length(tokenizer: Mapping[str, Any], transformer: Mapping[str, Any]) -> int | None:
    """Tokens of a pair as published; None: as many as the network has positions."""
    lengths = transformer.get("max_seq_length"), tokenizer.get("model_max_length")
    return next((length for length in lengths if type(length) is int and 0 < length < 2**31), None)


def _reads_images(stated: Mapping[str, Any], transformer: Mapping[str, Any], written: bool) -> bool:
    """Whether images may be read: the library itself knows once it has loaded the processor."""
    modalities = transformer.get("modality_config")
    if modalities is not None or written:
        return "image" in (modalities or {})
    return bool(stated["preprocessor_config.json"] or stated["processor_config.json"])
