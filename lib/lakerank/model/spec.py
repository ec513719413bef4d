"""Which checkpoint scores: found, named by what its scores depend on, and loaded. Only loading imports torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lakerank.cost import CostProfile, Sizing
from lakerank.errors import CheckpointError, ConfigError
from lakerank.fingerprint import fingerprint
from lakerank.limits import Limits, Listwise
from lakerank.model.checkpoint import (
    adapter_files,
    file_hash,
    locate,
    locate_adapter,
    module_files,
    quick_checksum,
    read_header,
    reading,
    resolve_dtype,
    stored_tensors,
    weight_files,
)
from lakerank.model.config import read_config
from lakerank.model.facts import PROMPT_FILES, read_facts
from lakerank.model.inputs import Instructions
from lakerank.model.preprocess.tokenizer import read_tokenizer
from lakerank.model.registry import (
    CheckpointIdentity,
    CheckpointInfo,
    LoadedReranker,
    LoadOptions,
    ModelFamily,
    family_named,
    family_of,
)

#: Keys of config.json that say where a checkpoint comes from, not what it computes.
_PROVENANCE = frozenset({"_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"})

#: Tokens of a window's prompt without its documents, and of each of these at least, with its number in the answer.
_PROMPT_TOKENS, _DOCUMENT_TOKENS = 256, 32


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """What a reranker may take of the machine; see `lakerank.load_reranker`."""

    host_threads: int | None = None
    device_threads: int | None = None
    reproducible: bool = True


@dataclass(frozen=True, slots=True)
class ScorerIdentity:
    """An identified reranker: what a plan needs to know of it, and how a worker recognises it.

    `identities`: of its checkpoint, or of the one for texts and the one for images.
    """

    fingerprint: str
    logit_bias: float
    identities: tuple[CheckpointIdentity, ...]

    @property
    def parameters(self) -> int:
        """Those of its largest checkpoint, whose tokens costs are counted in."""
        return max(identity.parameters for identity in self.identities)

    @property
    def encoder(self) -> str | None:
        """Names the states of documents that it can keep; None where it has none."""
        return self.identities[0].encoder if len(self.identities) == 1 else None

    @property
    def listwise(self) -> Listwise | None:
        """How it scores lists; None where it scores pairs."""
        return self.identities[0].listwise if len(self.identities) == 1 else None

    @property
    def readings(self) -> tuple[CostProfile, ...]:
        """How pairs are read, all of them, or those of texts and those with an image."""
        return tuple(identity.cost_profile(self.parameters) for identity in self.identities)

    @property
    def allows_instructions(self) -> bool:
        """Whether queries may have instructions of their own: all checkpoints take them, or pass over them."""
        return all(identity.instructions.accepted or identity.instructions.ignored for identity in self.identities)

    def document_sizing(self) -> Sizing:
        """What bounds the cost of a document."""
        return self._sizing([identity.max_document_tokens() for identity in self.identities])

    def query_sizing(self) -> Sizing:
        """What bounds the cost of a query."""
        return self._sizing([identity.limits.max_query_length for identity in self.identities])

    def _sizing(self, lengths: list[int]) -> Sizing:
        limits = self.identities[-1].limits
        plain = lengths[0] if len(lengths) > 1 else None
        return Sizing(limits.min_pixels, limits.max_pixels, lengths[-1], plain, limits.frames == "all")


@dataclass(frozen=True, slots=True)
class CheckpointSpec:
    """A checkpoint, its adapter and how they are read: what scores depend on.

    `instruction`: that of queries without their own. `ignore_instructions`: queries' own are passed over.
    `pointwise`: pairs are scored by what scores lists. `listwise`: how lists are; None: by the family's default.
    """

    path: str
    revision: str | None = None
    adapter: str | None = None
    adapter_revision: str | None = None
    family: str | None = None
    max_length: int | None = None
    dtype: str = "auto"
    instruction: str | None = None
    ignore_instructions: bool = False
    pointwise: bool = False
    listwise: Listwise | None = None

    def identify(self, limits: Limits) -> ScorerIdentity:
        """Find the checkpoint. Raises CheckpointError: it cannot be found or is not one."""
        identity = identify(self, limits)
        return ScorerIdentity(identity.fingerprint, identity.logit_bias, (identity,))

    def load(
        self, device: str, limits: Limits, options: RuntimeOptions, scorer: ScorerIdentity | None = None
    ) -> LoadedReranker:
        """The reranker in memory; `scorer`: from `identify` in another process, so that nothing is hashed again.

        Raises CheckpointError: it cannot be loaded, or is not the scorer's.
        """
        return load(self.load_options(device, limits, options, None if scorer is None else scorer.identities[0]))

    def load_options(
        self, device: str, limits: Limits, options: RuntimeOptions, identity: CheckpointIdentity | None = None
    ) -> LoadOptions:
        """What is loaded: the checkpoint as identified, with a dtype and a device of this machine."""
        import torch

        from lakerank.model.engine.device import choose_device, default_host_threads, supported_dtype

        target = choose_device(device)
        identity = identify(self, limits) if identity is None else confirm(identity, self)
        if options.device_threads is not None:
            torch.set_num_threads(options.device_threads)
        dtype = resolve_dtype(Path(identity.folder), self.dtype)
        dtype = supported_dtype(dtype, target) if self.dtype == "auto" else dtype
        adapter = locate_adapter(self.adapter, self.adapter_revision)
        threads = options.host_threads or default_host_threads(target)
        return LoadOptions(identity, adapter, dtype, str(target), threads, reproducible=options.reproducible)


def load(options: LoadOptions) -> LoadedReranker:
    """The reranker in memory. Raises CheckpointError: weights, adapter or tokenizer do not fit config.json."""
    with reading(options.identity.folder):
        return family_named(options.identity.family).load(options)


def identify(spec: CheckpointSpec, limits: Limits | None = None) -> CheckpointIdentity:
    """Find a checkpoint and name the scorer it makes; two of the same name give the same scores on the same device.

    Raises CheckpointError: it cannot be found or is not one. ConfigError: it takes no instruction.
    """
    with reading(spec.path):
        folder = locate(spec.path, spec.revision)
        config = read_config(folder)
        adapter = locate_adapter(spec.adapter, spec.adapter_revision)
        if spec.family is None:
            family = family_of(read_facts(folder, config, adapter), str(folder))
        else:
            family = family_named(spec.family, str(folder))
        if adapter is not None and not family.accepts_adapter:
            raise CheckpointError(f"{folder}: {family.name} takes no adapter; leave model.adapter out")
        info = family.read_info(folder, spec.dtype)
        family = replace(family, **info.of_family)
        own = (spec.instruction or "").strip() or None
        instructions = Instructions(family.accepts_instruction, own, spec.ignore_instructions)
        if own is not None and not instructions.accepted:
            raise ConfigError([f"model.instruction: {folder} is a {family.name}, which takes none; leave it out"])
        read_tokenizer(folder / "tokenizer.json")  # a broken one is refused before planning
        limits = family.limits(config, limits or Limits(), spec.max_length, str(folder))
        if info.lengths is not None:
            limits = replace(limits, max_query_length=info.lengths[0])
        listwise = _listwise(spec, family, info, limits, str(folder))
        parts = {
            "protocol": family.protocol,
            "weights": [file_hash(file) for file in weight_files(folder)],
            "config": {key: value for key, value in config.items() if key not in _PROVENANCE},
            "tokenizer": file_hash(folder / "tokenizer.json"),
            "adapter": None if adapter is None else [file_hash(file) for file in adapter_files(adapter)],
            "dtype": info.dtype,
            "logit_bias": info.logit_bias,
            "limits": limits.identity(),
            **info.parts,
            **({"instruction": own} if own else {}),
            **({"ignore_instructions": True} if instructions.accepted and instructions.ignored else {}),
            **({"listwise": listwise and asdict(listwise)} if family.listwise else {}),
        }
        if adapter is not None:
            read_header(adapter_files(adapter)[1])  # a truncated file is refused before planning
        count = sum(math.prod(shape) for shape, _ in stored_tensors(folder).values())
        checksum = quick_checksum(_all_files(folder, adapter))
    of_family = family.name, limits, instructions, _encoder_name(info, parts, limits)
    reads = family.accepts_images, family.document_major, listwise, info.lengths and info.lengths[1]
    return CheckpointIdentity(str(folder), fingerprint(parts), info.logit_bias, count, checksum, *of_family, *reads)


def _listwise(
    spec: CheckpointSpec, family: ModelFamily, info: CheckpointInfo, limits: Limits, source: str
) -> Listwise | None:
    """How lists are scored, what is not stated by the family's default; None where pairs are.

    Raises ConfigError: the family cannot do it, or a window leaves its documents no room.
    """
    own, default, pairs = spec.listwise or Listwise(), info.listwise, spec.pointwise or not family.listwise
    window = own.window or default.window or 1
    stride = default.stride and (own.stride or max(1, window // 2))
    room = limits.max_length - 2 * limits.max_query_length - _PROMPT_TOKENS - _DOCUMENT_TOKENS * window
    faults = {
        "listwise: pairs are scored; leave it out": pairs and spec.listwise is not None,
        "pointwise: lists alone are scored; leave it out": pairs and not family.pointwise,
        "listwise.stride: windows do not overlap; leave it out": own.stride is not None and default.stride is None,
        f"listwise.window: {window} documents and twice scoring.max_query_length do not fit into model.max_length "
        f"{limits.max_length}": not pairs and info.lengths is None and room < 0,
    }
    if found := [f"model.{fault} ({source} is a {family.name})" for fault, holds in faults.items() if holds]:
        raise ConfigError(found)
    return None if pairs else Listwise(own.passes, window, stride)


def _encoder_name(info: CheckpointInfo, parts: Mapping[str, Any], limits: Limits) -> str | None:
    """Names what the states of documents depend on: two scorers that read queries otherwise may share it."""
    if info.encoder is None:
        return None
    names = ("protocol", "weights", "config", "tokenizer", "dtype")
    length = limits.max_length - limits.max_query_length
    return fingerprint({name: parts[name] for name in names} | {"length": length, "encoder": info.encoder})


def confirm(identity: CheckpointIdentity, spec: CheckpointSpec) -> CheckpointIdentity:
    """The identity of the same checkpoint as found by this process, its weights not hashed again.

    Raises CheckpointError: it cannot be found, or is another.
    """
    folder = locate(spec.path, spec.revision)
    if quick_checksum(_all_files(folder, locate_adapter(spec.adapter, spec.adapter_revision))) != identity.checksum:
        advice = "give every worker the driver's files"
        raise CheckpointError(f"{folder}: not the checkpoint that the job was planned with; {advice}")
    return replace(identity, folder=str(folder))


def _all_files(folder: Path, adapter: str | None) -> Iterable[Path]:
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", *PROMPT_FILES)
    small = [file for name in names for file in sorted(folder.glob(name))]
    return [*small, *weight_files(folder), *module_files(folder), *(adapter_files(adapter) if adapter else ())]
