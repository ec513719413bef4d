"""The network of jina-reranker-m0, Qwen2-VL with a score head."""

from __future__ import annotations

from torch import nn
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel, Qwen2VLPreTrainedModel

#: Frequencies that follow time, height and width, where a config.json does not say; Qwen2-VL's own.
MROPE_SECTION = [16, 24, 24]


class JinaVLForRanking(Qwen2VLPreTrainedModel):  # type: ignore[misc]
    """Qwen2-VL without a language head; `score` is read at the last position of the last hidden state.

    It holds the weights under the names of newer transformers. Scoring runs them in `packed` and `vision`.
    """

    def __init__(self, config: Qwen2VLConfig) -> None:
        super().__init__(config)
        hidden = config.text_config.hidden_size
        self.model = Qwen2VLModel(config)
        self.score = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.post_init()
