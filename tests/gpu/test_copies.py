"""What goes to a device goes through `to_device`, which does not wait for it: a copy from any other memory does."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from scale.gpu_trace import groups, ranker


class Copies(TorchDispatchMode):
    """Where tensors are copied from the host to the `meta` device: in `to_device`, or elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.by_to_device = 0
        self.elsewhere: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in ("aten::to", "aten::_to_copy"):
            devices = [value for value in (*args, *(kwargs or {}).values()) if isinstance(value, torch.device)]
            target = (devices or [args[0].device])[0]
            if target.type == "cpu":
                return torch.zeros(args[0].shape, dtype=args[0].dtype)  # results, as the host reads them
            if args[0].device.type == "cpu" != target.type:
                frames = [frame for frame in traceback.extract_stack() if "/model/engine/" in frame.filename]
                if frames[-1].name == "to_device":
                    self.by_to_device += 1
                else:
                    self.elsewhere.append(f"{Path(frames[-1].filename).name}:{frames[-1].lineno}")
        return func(*args, **(kwargs or {}))


def test_pages_queries_and_their_layouts_are_copied_without_waiting() -> None:
    engine, _ = ranker(layers=1)
    with Copies() as copies:
        engine.score(groups(2, 3))
    assert copies.by_to_device > 10
    assert copies.elsewhere == []
