"""What was found out about this machine's arithmetic, kept on disk so that the next load does not have to try again."""

from __future__ import annotations

import json
import logging
import os
import platform
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lakerank.fingerprint import fingerprint
from lakerank.model.checkpoint import cached_folder

logger = logging.getLogger(__name__)

#: Lines of /proc/cpuinfo that say which processor it is (x86 and Arm), not what it is doing.
_PROCESSOR = frozenset({
    "vendor_id", "cpu family", "model", "model name", "stepping", "cache size", "flags",
    "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features",
})  # fmt: skip

#: Prefixes of environment variables by which libraries choose kernels and threads.
_VARIABLES = ("ATEN_", "DNNL_", "GOMP_", "KMP_", "MKL_", "OMP_", "ONEDNN_", "OPENBLAS_")


@dataclass(frozen=True, slots=True)
class Findings:
    """JSON values by what was tried, valid for one machine. A folder that cannot be read or written keeps nothing."""

    folder: Path | None
    machine: str

    @classmethod
    def here(cls) -> Findings:
        """Those of this machine as torch uses it now, in the cache folder; none where a user has no home."""
        folder = cached_folder("findings")
        return cls(None if folder.parts[0] == "~" else folder, _machine())

    def read(self, tried: Mapping[str, Any]) -> Any:
        """The value kept for it; None where there is none, or the file is damaged or another machine's."""
        key = self._key(tried)
        with suppress(OSError, ValueError, TypeError, KeyError):
            if self.folder is not None:
                kept = json.loads((self.folder / f"{key}.json").read_text(encoding="utf-8"))
                return kept["value"] if kept["key"] == key else None
        return None

    def write(self, tried: Mapping[str, Any], value: Any) -> None:
        """Keep a value. The file is replaced whole; a failure to write it only costs the next load time."""
        if self.folder is None:
            return
        key = self._key(tried)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
                file = Path(scratch) / f"{key}.json"
                file.write_text(json.dumps({"key": key, "value": value}), encoding="utf-8")
                file.replace(self.folder / file.name)
        except OSError as error:
            logger.debug("%s: not written: %s", self.folder, error)

    def _key(self, tried: Mapping[str, Any]) -> str:
        return fingerprint({"machine": self.machine, **tried})


def _machine() -> str:
    """Everything that kernels are chosen by: host, processor, torch's build and threads, libraries' variables."""
    affinity = getattr(os, "sched_getaffinity", None)
    parts = [
        *(platform.node(), platform.platform(), platform.processor(), os.cpu_count(), affinity and len(affinity(0))),
        *sorted({line for line in cpu_lines() if line.partition(":")[0].strip() in _PROCESSOR}),
        *(torch.__version__, torch.__config__.show(), torch.backends.cpu.get_cpu_capability()),
        *(torch.get_num_threads(), torch.backends.mkldnn.enabled, torch.get_float32_matmul_precision()),
        *sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith(_VARIABLES)),
    ]
    return "\n".join(map(str, parts))


def cpu_lines() -> list[str]:
    """What Linux says of each processor; nothing elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
