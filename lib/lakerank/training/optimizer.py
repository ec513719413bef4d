"""What changes the weights: AdamW for everything, or Muon for the hidden layers' matrices and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lakerank.training.config import OptimizerConfig

#: Matrices that are tables of vectors or read one out, not maps from one hidden state to another.
_NOT_HIDDEN = ("embed_tokens", "proxies.", "score.")


@dataclass(frozen=True)
class Optimizer:
    """Torch's optimizers, each with parameters of its own, as one."""

    parts: tuple[torch.optim.Optimizer, ...]

    def step(self, rate: float) -> None:
        """Change every parameter that has a gradient, at this learning rate, and drop the gradients."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
            part.zero_grad(set_to_none=True)

    def moments(self, parameter: nn.Parameter) -> Mapping[str, Tensor]:
        """What is remembered of a parameter's gradients, by name; nothing before its first step."""
        return next((dict(part.state[parameter]) for part in self.parts if parameter in part.state), {})

    def remember(self, parameter: nn.Parameter, moments: Mapping[str, Tensor]) -> None:
        """Put back what `moments` gave."""
        for part in self.parts:
            if any(parameter is own for group in part.param_groups for own in group["params"]):
                part.state[parameter] = dict(moments)


def make_optimizer(settings: OptimizerConfig, parameters: Mapping[str, nn.Parameter]) -> Optimizer:
    """Weight decay is for matrices alone: not for norms, biases and embeddings."""
    hidden = {name for name, value in parameters.items() if settings.name == "muon" and is_hidden(name, value)}
    plain = {name for name, value in parameters.items() if value.ndim < 2 or "embed_tokens" in name}
    groups: list[dict[str, Any]] = [
        {"params": [value for name, value in parameters.items() if name not in plain | hidden]},
        {"params": [value for name, value in parameters.items() if name in plain], "weight_decay": 0.0},
    ]
    decay = settings.weight_decay
    parts: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=0.0, weight_decay=decay, betas=(0.9, 0.98), fused=True
        )
    ]
    if hidden:
        matrices = [value for name, value in parameters.items() if name in hidden]
        parts.append(torch.optim.Muon(matrices, lr=0.0, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    return Optimizer(tuple(parts))


def is_hidden(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter maps hidden states to hidden states."""
    return parameter.ndim == 2 and not any(words in name for words in _NOT_HIDDEN)
