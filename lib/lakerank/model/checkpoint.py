"""Checkpoints without their tensors: where one is, what it is made of, and the name of the scorer it makes.

torch is not imported here: planning a job, which needs the scorer's fingerprint, must not pay for it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lakerank.errors import CheckpointError
from lakerank.fingerprint import fingerprint
from lakerank.limits import Limits
from lakerank.model.checksum import quick_checksum
from lakerank.model.family import CheckpointInfo
from lakerank.model.jina_m0.prompt import LOGIT_BIAS, SCORE_TOKEN_ID
from lakerank.model.preprocess.images import CLIP_MEAN, CLIP_STD, PatchShape
from lakerank.model.registry import M0, family_named, family_of

EMBEDDED = Path(__file__).parent / "embedded"
INDEX_NAME = "model.safetensors.index.json"
WEIGHTS_NAME = "model.safetensors"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ["*.safetensors", "*.json", "*.txt"]
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}

#: Keys of config.json that say where a checkpoint comes from, not what it computes.
_PROVENANCE = frozenset({"_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"})


@dataclass(frozen=True, slots=True)
class CheckpointIdentity:
    """A checkpoint at hand: its folder, the scorer's name, the bias of its family, the number of its weights.

    `stamp` lets another process know the same files by reading little of them; see `confirm`. `family` is a name in
    `families`, `limits` are those that hold for it.
    """

    folder: str
    fingerprint: str
    logit_bias: float
    parameters: int
    stamp: str = ""
    family: str = M0
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the JSON files of a checkpoint say beside the network's shape."""

    config: Mapping[str, Any]
    dtype: str
    logit_bias: float
    score_token_id: int
    patches: PatchShape


def identify(
    path: str,
    *,
    revision: str | None = None,
    adapter: str | None = None,
    adapter_revision: str | None = None,
    dtype: str = "auto",
    limits: Limits | None = None,
    family: str | None = None,
    max_length: int | None = None,
) -> CheckpointIdentity:
    """Find a checkpoint and name the scorer it makes; two of the same name give the same scores on the same device.

    Args:
        family: a name in `families`, where config.json is not to decide.
        max_length: the model's own, instead of `limits.max_length`.

    Raises:
        CheckpointError: it cannot be found or is not one.
    """
    folder = locate(path, revision)
    config = read_json(folder / "config.json")
    kind = family_of(config, family, str(folder))
    if adapter is not None and not kind.accepts_adapter:
        raise CheckpointError(f"{folder}: {kind.name} takes no adapter; leave model.adapter out")
    adapter = locate_adapter(adapter, adapter_revision)
    files = weight_files(folder)
    facts = kind.read(folder, dtype)
    limits = kind.limits(config, limits or Limits(), max_length, str(folder))
    parts = {
        "protocol": kind.protocol,
        "weights": [file_hash(file) for file in files],
        "config": {key: value for key, value in config.items() if key not in _PROVENANCE},
        "tokenizer": file_hash(folder / "tokenizer.json"),
        "adapter": None if adapter is None else [file_hash(file) for file in adapter_files(adapter)],
        "dtype": facts.dtype,
        "logit_bias": facts.logit_bias,
        "limits": asdict(limits),
        **facts.parts,
        **{name: file_hash(folder / name) for name in kind.files if (folder / name).is_file()},
    }
    if adapter is not None:
        read_header(adapter_files(adapter)[1])  # a torn one is refused before anything is planned
    count = sum(math.prod(shape) for file in files for shape, _ in read_header(file).values())
    stamp = quick_checksum(_all_files(folder, adapter, kind.files))
    return CheckpointIdentity(str(folder), fingerprint(parts), facts.logit_bias, count, stamp, kind.name, limits)


def confirm(
    identity: CheckpointIdentity,
    path: str,
    *,
    revision: str | None = None,
    adapter: str | None = None,
    adapter_revision: str | None = None,
) -> CheckpointIdentity:
    """The identity of the same checkpoint as found by this process, its weights not hashed again.

    Raises:
        CheckpointError: it cannot be found, or is another.
    """
    folder = locate(path, revision)
    files = family_named(identity.family).files
    if quick_checksum(_all_files(folder, locate_adapter(adapter, adapter_revision), files)) != identity.stamp:
        raise CheckpointError(
            f"{folder}: not the checkpoint that the job was planned with; give every worker the driver's files"
        )
    return replace(identity, folder=str(folder))


def _all_files(folder: Path, adapter: str | None, further: Iterable[str]) -> list[Path]:
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", *further)
    small = [folder / name for name in dict.fromkeys(names) if (folder / name).is_file()]
    return [*small, *weight_files(folder), *(adapter_files(adapter) if adapter else ())]


def locate(path: str, revision: str | None = None) -> Path:
    """The folder of a checkpoint, downloaded where `path` is a hub id.

    Raises:
        CheckpointError: nothing is there, a hub id comes without revision, or the download fails.
    """
    folder = EMBEDDED if path == "embedded" else Path(path)
    if not folder.is_dir() and _HUB_ID.fullmatch(path):
        folder = _download(path, revision)
    if not folder.is_dir():
        raise CheckpointError(f"{path}: neither a folder nor a hub id such as jinaai/jina-reranker-m0, nor `embedded`")
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: an adapter: name it under model.adapter, and its base under model.path")
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: no {name}; a checkpoint is a folder with it, weights and a tokenizer")
    return folder.resolve()


def locate_adapter(adapter: str | None, revision: str | None = None) -> str | None:
    """The folder of a LoRA adapter, downloaded where `adapter` is a hub id and no folder; None for none.

    Raises:
        CheckpointError: a hub id comes without revision, or the download fails.
    """
    if adapter is None or Path(adapter).is_dir() or not _HUB_ID.fullmatch(adapter):
        return adapter
    return str(_download(adapter, revision, "adapter_revision"))


def _download(hub_id: str, revision: str | None, setting: str = "revision") -> Path:
    if revision is None:
        raise CheckpointError(f"{hub_id}: set model.{setting}, so that the weights cannot change between two runs")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub's client raises its own errors, the network's and the disk's
        raise CheckpointError(f"{hub_id} at {revision}: {type(error).__name__}: {error}") from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, sharded or not.

    Raises:
        CheckpointError: there are none, or a shard is missing.
    """
    if (folder / WEIGHTS_NAME).is_file():
        return [folder / WEIGHTS_NAME]
    if not (folder / INDEX_NAME).is_file():
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        found = f"only {few(pickles)}, which could run code when read" if pickles else "no weights"
        raise CheckpointError(f"{folder}: {found}; {WEIGHTS_NAME} or {INDEX_NAME} is needed")
    index = read_json(folder / INDEX_NAME)
    names = sorted(set(index.get("weight_map", {}).values()))
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing or not names:
        raise CheckpointError(f"{folder}: shards are missing: {few(missing)}; copy the checkpoint again")
    return [folder / name for name in names]


def adapter_files(adapter: str) -> list[Path]:
    """The two files of a LoRA adapter.

    Raises:
        CheckpointError: one is missing.
    """
    files = [Path(adapter) / name for name in ("adapter_config.json", "adapter_model.safetensors")]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(f"{adapter}: no {few(missing)}; an adapter is a folder as peft saves it, in safetensors")
    return files


def read_settings(folder: Path, dtype: str = "auto") -> Settings:
    """Read config.json and preprocessor_config.json; `dtype` auto is the checkpoint's own.

    Raises:
        CheckpointError: a file is not JSON, the model is another, or it needs what is not supported.
    """
    config = read_json(folder / "config.json")
    if config.get("model_type") != "qwen2_vl" or not isinstance(config.get("vision_config"), dict):
        raise CheckpointError(f"{folder}: model_type {config.get('model_type')!r} in config.json, not 'qwen2_vl'")
    text = config.get("text_config") or config
    if text.get("use_sliding_window"):
        raise CheckpointError(f"{folder}: use_sliding_window is not supported: a query must see its whole document")
    return Settings(
        config=config,
        dtype=resolve_dtype(folder, dtype),
        logit_bias=float(config.get("logit_bias", LOGIT_BIAS)),
        score_token_id=int(config.get("score_token_id", SCORE_TOKEN_ID)),
        patches=patch_shape(folder, config["vision_config"]),
    )


def m0_facts(folder: Path, dtype: str) -> CheckpointInfo:
    """What names jina-reranker-m0's scorer, beyond what every fingerprint holds."""
    settings = read_settings(folder, dtype)
    parts = {"score_token_id": settings.score_token_id, "patches": asdict(settings.patches)}
    return CheckpointInfo(settings.dtype, settings.logit_bias, parts)


def resolve_dtype(folder: Path, dtype: str) -> str:
    """`dtype`, or for auto the type that most of the stored weights have.

    Raises:
        CheckpointError: `dtype` is none that weights are computed in, or a tensor is of another type.
    """
    if dtype not in ("auto", *_DTYPES.values()):
        raise CheckpointError(f"dtype {dtype!r}: choose auto, {', '.join(_DTYPES.values())}")
    if dtype != "auto":
        return dtype
    counts = dict.fromkeys(_DTYPES, 0)
    for file in weight_files(folder):
        for shape, stored in read_header(file).values():
            if stored == "I64":  # a buffer of positions, never a weight
                continue
            if stored not in counts:
                raise CheckpointError(f"{file}: tensors of type {stored}; only {', '.join(_DTYPES)} are supported")
            counts[stored] += math.prod(shape)
    return _DTYPES[max(counts, key=lambda stored: counts[stored])]


def patch_shape(folder: Path, vision: Mapping[str, Any]) -> PatchShape:
    """How images are cut, by config.json's `vision_config` and preprocessor_config.json; Qwen2-VL's own where neither
    says.

    Raises:
        CheckpointError: preprocessor_config.json is there but not JSON.
    """
    file = folder / "preprocessor_config.json"
    stated = read_json(file) if file.is_file() else {}
    mean, std = stated.get("image_mean", CLIP_MEAN), stated.get("image_std", CLIP_STD)
    return PatchShape(
        side=int(vision.get("patch_size", 14)),
        merge=int(vision.get("spatial_merge_size", 2)),
        frames=int(vision.get("temporal_patch_size", 2)),
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
    )


def read_header(file: Path) -> dict[str, tuple[list[int], str]]:
    """Shape and stored type of every tensor in a safetensors file.

    Raises:
        CheckpointError: the file is not safetensors, or is torn.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > size:
                raise ValueError("the header is longer than the file")
            header = json.loads(stream.read(length))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        whole = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        if size != whole:
            raise ValueError(f"{size} bytes where its header says {whole}")
        return {name: (entry["shape"], entry["dtype"]) for name, entry in tensors.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise CheckpointError(f"{file}: not a whole safetensors file ({error}); copy it again") from error


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: it is missing or not one.
    """
    try:
        loaded = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read as JSON: {error}") from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{file}: expected an object, found {type(loaded).__name__}")
    return loaded


def file_hash(file: Path) -> str:
    """Hash of a file's bytes, computed once for as long as its size and time of change stay."""
    status = file.stat()
    return _file_hash(str(file.resolve()), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _file_hash(path: str, size: int, mtime_ns: int) -> str:
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").hexdigest()


def few(names: list[str]) -> str:
    """The first names of a list, for a message."""
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
