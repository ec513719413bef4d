"""Loads a checkpoint of any family as a reranker."""

from __future__ import annotations

from pathlib import Path

import torch

from lakerank.limits import Limits
from lakerank.model.checkpoint import locate_adapter, resolve_dtype
from lakerank.model.engine.device import choose_device, supported_dtype
from lakerank.model.identity import CheckpointIdentity, confirm, identify
from lakerank.model.registry import LoadedReranker, LoadOptions, family_named


def load_reranker(
    path: str,
    *,
    revision: str | None = None,
    adapter: str | None = None,
    adapter_revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    limits: Limits | None = None,
    host_threads: int = 2,
    device_threads: int | None = None,
    reproducible: bool = True,
    identity: CheckpointIdentity | None = None,
    family: str | None = None,
    max_length: int | None = None,
) -> LoadedReranker:
    """Load a checkpoint: a folder, a hub id with its revision, or `embedded`.

    Args:
        adapter: folder (or hub id with `adapter_revision`) of a LoRA adapter, merged on load.
        dtype: auto (the checkpoint's, or float32 where the device has no units for that), float32, bfloat16 or float16.
        device: auto (a GPU where there is one), cpu, cuda, cuda:1, …
        host_threads: decode and tokenise ahead of the device.
        device_threads: torch's threads on a CPU, for the whole process; None leaves them alone.
        reproducible: a pair's score has the same bits whatever is scored beside it; False: it may not, and is faster.
        identity: the result of `identify` for the same checkpoint, dtype and limits in another process, so that large
            weights are not hashed again.
        family: how it is computed, where its config.json is not to decide: a name in the registry.
        max_length: tokens of a pair, the model's own instead of `limits.max_length`.

    Raises:
        CheckpointError: the checkpoint cannot be loaded as it stands.
    """
    source = {"revision": revision, "adapter": adapter, "adapter_revision": adapter_revision}
    if identity is None:
        identity = identify(path, **source, dtype=dtype, limits=limits, family=family, max_length=max_length)
    else:
        identity = confirm(identity, path, **source)
    if device_threads is not None:
        torch.set_num_threads(device_threads)
    target = choose_device(device)
    chosen = resolve_dtype(Path(identity.folder), dtype)
    options = LoadOptions(
        family=identity.family,
        folder=Path(identity.folder),
        adapter=locate_adapter(adapter, adapter_revision),
        dtype=supported_dtype(chosen, target) if dtype == "auto" else chosen,
        device=str(target),
        limits=identity.limits,
        host_threads=host_threads,
        reproducible=reproducible,
        fingerprint=identity.fingerprint,
        logit_bias=identity.logit_bias,
    )
    return family_named(identity.family).load(options)
