"""What a checkpoint's files say to sentence-transformers, and what is refused; a plan needs it, without torch.

A checkpoint names neither Python nor files that are not its own: modules.json and activations are import paths, some
settings are folders or hub ids. What is left is data, which the library and transformers read themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lakerank.errors import CheckpointError
from lakerank.model.checkpoint import file_hash, read_header, read_json, read_modules, resolve_dtype
from lakerank.model.registry import CheckpointInfo

#: The library's modules that have no others within. Their weights may be safetensors, and are then read as that alone.
_KINDS = "Transformer|Pooling|Dense|LayerNorm|Normalize|Dropout|LogitScore"
_MODULE = re.compile(rf"sentence_transformers(\.\w+)*\.({_KINDS})")

#: The library calls whatever of torch an activation's import path names.
_ACTIVATION = re.compile(r"(?!torch\.)|torch\.nn(\.\w+)*\.[A-Z]\w*$")

#: By these another folder would be read, code of others run, or another device used.
_FOREIGN = re.compile(
    "tokenizer_name_or_path|base_model_name_or_path|audio_tokenizer|code_revision|device_map|gguf_file|quantization_config"
)

#: Files that scores depend on, or may.
_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "additional_chat_templates/*.jinja", "*.safetensors")


def read_info(folder: Path, dtype: str, family: str) -> CheckpointInfo:
    """The dtype, length and modalities of a checkpoint, the files that its scores depend on, and the library's version.

    Raises CheckpointError: the library is not installed; a file is damaged, pickled, or names code or other files.
    """
    if find_spec("sentence_transformers") is None:
        raise CheckpointError(f'{folder}: {family} needs that library: pip install "lakerank[sentence-transformers]"')
    modules = read_modules(folder)
    faults = [f"modules.json: {kind:.80} {fault}" for kind, place in modules for fault in _faults(folder, kind, place)]
    places = [folder] if faults else [folder, *(place for _, place in modules[1:])]
    paths = (file for place in places for file in place.glob("*.json"))
    stated = {file: read_json(file) for file in paths if file.name not in ("modules.json", "tokenizer.json")}
    for file, values in stated.items():
        faults += [f"{file.relative_to(folder)}: {fault}" for fault in _foreign(values)]
    if len(modules) < 2 and len(labels := stated[folder / "config.json"].get("id2label") or ("",)) > 1:
        faults.append(f"config.json: {len(labels)} labels, not the one of a relevance score")
    if faults:
        raise CheckpointError(f"{folder}: not for {family}: {'; '.join(faults)}")
    files = {file for place in places for pattern in _FILES for file in place.glob(pattern)}
    files -= {folder / "config.json", *folder.glob("*.safetensors")}
    for file in files:
        if file.suffix == ".safetensors":
            read_header(file)  # a truncated one is refused before planning
    hashes = {str(file.relative_to(folder)): file_hash(file) for file in sorted(files)}
    parts = {"library": version("sentence-transformers").split(".")[:2], "files": hashes}
    of_family = _length_and_images(folder, stated, written=len(modules) > 0)
    return CheckpointInfo(resolve_dtype(folder, dtype), parts=parts, of_family=of_family)


def _length_and_images(folder: Path, stated: Mapping[Path, dict[str, Any]], *, written: bool) -> dict[str, Any]:
    """Tokens of a pair as published, and whether images may be read; `written`: the library wrote the files."""
    transformer = next((stated[file] for file in sorted(folder.glob("sentence_*_config.json"))), {})
    tokenizer = stated.get(folder / "tokenizer_config.json", {})
    lengths = transformer.get("max_seq_length"), tokenizer.get("model_max_length")
    length = next((length for length in lengths if type(length) is int and 0 < length < 2**31), None)
    processor = any(folder.glob("*processor_config.json"))
    images = "image" in transformer.get("modality_config", ()) if written else processor
    return {"default_max_length": length, "accepts_images": images}


def _faults(folder: Path, kind: str, place: Path) -> Iterator[str]:
    """What is refused of a module, by its import path and its folder."""
    if not _MODULE.fullmatch(kind):
        yield "is no module of the library that is run here"
    if kind.endswith(".Transformer") != (place == folder) or folder not in (place, place.resolve().parent):
        yield "has another folder than the checkpoint's own for the Transformer, one in it for each other module"
    pickles = [file.name for suffix in ("bin", "pt", "pth", "pkl", "ckpt") for file in place.glob(f"*.{suffix}")]
    if pickles and not any(place.glob("*.safetensors")):
        yield f"has only {pickles[0]}, which could run code when read; model.safetensors is needed"


def _foreign(values: Mapping[str, Any]) -> Iterator[str]:
    """Settings, at any depth, that name code or files which are not the checkpoint's."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _foreign(value)
        kernel = "attn_implementation" in key and value not in (None, "eager", "sdpa")
        activation = "activation_f" in key and not _ACTIVATION.match(str(value))
        if kernel or activation or (_FOREIGN.fullmatch(key) and isinstance(value, str | Mapping)):
            yield f"{key} is {value!r:.80}, which is not the checkpoint's own"
