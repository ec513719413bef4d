"""The identity of a checkpoint: the name of the scorer it makes, and how another process recognises the same files."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from lakerank.errors import CheckpointError
from lakerank.fingerprint import fingerprint
from lakerank.limits import Limits
from lakerank.model.checkpoint import (
    adapter_files,
    file_hash,
    locate,
    locate_adapter,
    quick_checksum,
    read_header,
    read_json,
    weight_files,
)
from lakerank.model.registry import M0, family_named, family_of

#: Keys of config.json that say where a checkpoint comes from, not what it computes.
_PROVENANCE = frozenset({"_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"})


@dataclass(frozen=True, slots=True)
class CheckpointIdentity:
    """A checkpoint at hand: its folder, the scorer's name, the bias of its family, the number of its weights.

    `checksum` lets another process recognise the same files by reading little of them; see `confirm`. `family` is a
    name in the registry, `limits` are those that apply to it.
    """

    folder: str
    fingerprint: str
    logit_bias: float
    parameters: int
    checksum: str = ""
    family: str = M0
    limits: Limits = field(default_factory=Limits)


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
        family: a name in the registry, where config.json is not to decide.
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
    info = kind.read_info(folder, dtype)
    limits = kind.limits(config, limits or Limits(), max_length, str(folder))
    parts = {
        "protocol": kind.protocol,
        "weights": [file_hash(file) for file in files],
        "config": {key: value for key, value in config.items() if key not in _PROVENANCE},
        "tokenizer": file_hash(folder / "tokenizer.json"),
        "adapter": None if adapter is None else [file_hash(file) for file in adapter_files(adapter)],
        "dtype": info.dtype,
        "logit_bias": info.logit_bias,
        "limits": asdict(limits),
        **info.parts,
        **{name: file_hash(folder / name) for name in kind.files if (folder / name).is_file()},
    }
    if adapter is not None:
        read_header(adapter_files(adapter)[1])  # a torn one is refused before anything is planned
    count = sum(math.prod(shape) for file in files for shape, _ in read_header(file).values())
    checksum = quick_checksum(_all_files(folder, adapter, kind.files))
    return CheckpointIdentity(str(folder), fingerprint(parts), info.logit_bias, count, checksum, kind.name, limits)


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
    if quick_checksum(_all_files(folder, locate_adapter(adapter, adapter_revision), files)) != identity.checksum:
        raise CheckpointError(
            f"{folder}: not the checkpoint that the job was planned with; give every worker the driver's files"
        )
    return replace(identity, folder=str(folder))


def _all_files(folder: Path, adapter: str | None, further: Iterable[str]) -> list[Path]:
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", *further)
    small = [folder / name for name in dict.fromkeys(names) if (folder / name).is_file()]
    return [*small, *weight_files(folder), *(adapter_files(adapter) if adapter else ())]
