"""What is trained: a network, and the proxies of topics that stand beside it while it learns."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

#: What an MLP that recalls topics multiplies its keys and values by; found by trying a few.
RECALL_KEYS, RECALL_VALUES = 0.5, 0.2

#: What of layer `tap` its attention logits come from.
SIMILARITY_PARTS = ("input_layernorm.", "self_attn.q_proj.", "self_attn.k_proj.")


@dataclass(frozen=True)
class Learner:
    """What is trained: the network, and proxies, one a topic (null without topics), that no checkpoint keeps."""

    network: Any
    proxies: nn.Linear | None
    tap: int
    checkpointing: bool = False

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return torch.device(next(self.network.parameters()).device)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Everything that takes gradients, by name."""
        named = {f"network.{name}": value for name, value in self.network.named_parameters() if value.requires_grad}
        if self.proxies is not None:
            named |= {f"proxies.{name}": value for name, value in self.proxies.named_parameters()}
        return named

    @torch.no_grad()
    def recall(self) -> None:
        """Make the MLP before layer `tap` answer what resembles a proxy with that proxy's direction.

        A feed-forward layer is a memory of keys and values (Geva et al. 2021); the square that gate and product make
        of likeness lets the topic that is meant stand out (dense associative memory, Krotov and Hopfield 2016).
        """
        if self.proxies is None:
            raise ValueError("no proxies without topics")
        topics = self.proxies.weight
        mlp = self.network.model.language_model.layers[self.tap - 1].mlp
        for keys in (mlp.gate_proj.weight, mlp.up_proj.weight):
            keys[: len(topics)] = RECALL_KEYS * topics
        mlp.down_proj.weight[:, : len(topics)] = RECALL_VALUES * nn.functional.normalize(topics, dim=1).T

    def is_layer(self, name: str) -> bool:
        """Whether a parameter belongs to the language model's layers, to what follows them, or to the proxies."""
        return any(part in name for part in ("language_model.layers.", "language_model.norm.", "score.", "proxies."))

    def is_upper(self, name: str) -> bool:
        """Whether a parameter comes after the similarity of layer `tap`: what layers do with what that one found."""
        if found := re.search(r"language_model\.layers\.(\d+)\.(\S+)", name):
            layer, part = int(found[1]), found[2]
            return layer > self.tap or (layer == self.tap and not part.startswith(SIMILARITY_PARTS))
        return "network.score." in name or "language_model.norm." in name
