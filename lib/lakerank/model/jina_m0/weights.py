"""The network of jina-reranker-m0, read from a checkpoint in either naming."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel, Qwen2VLPreTrainedModel

from lakerank.model.jina_m0.config import Settings
from lakerank.model.weights import build_network, check_stored, current_name, fill_network, merge_adapter, read_tensors

#: A language head that ranking does not use; published checkpoints may still have it.
_UNUSED = frozenset({"lm_head.weight"})


class JinaVLForRanking(Qwen2VLPreTrainedModel):  # type: ignore[misc]
    """Qwen2-VL with a score head, read at the last position of the last hidden state, in place of a language head.

    Tensors have the names of newer transformers. Scoring runs them in `engine.decoder` and `engine.vision`.
    """

    def __init__(self, config: Qwen2VLConfig) -> None:
        super().__init__(config)
        hidden = config.text_config.hidden_size
        self.model = Qwen2VLModel(config)
        self.score = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.post_init()


def load_network(
    folder: Path, settings: Settings, device: str | torch.device = "cpu", adapter: str | None = None
) -> JinaVLForRanking:
    """A checkpoint's network on a device, in evaluation mode, an adapter merged into it.

    Raises CheckpointError: the weights or the adapter do not fit config.json.
    """
    network: JinaVLForRanking = build_network(Qwen2VLConfig, JinaVLForRanking, settings.config, str(folder))
    check_stored(network, folder, current_name, _UNUSED)
    fill_network(network, read_tensors(folder, getattr(torch, settings.dtype), current_name, _UNUSED), str(folder))
    if adapter is not None:
        merge_adapter(network, adapter, current_name)
    network.to(device)
    return network
