"""The network of jina-reranker-m0, Qwen2-VL with a score head, and the positions of its tokens."""

from __future__ import annotations

import numpy as np
from torch import nn
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel, Qwen2VLPreTrainedModel

#: Rows of patches and columns of patches of an image, before the merger joins squares of them into visual tokens.
Grid = tuple[int, int]

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


def text_positions(start: int, count: int) -> np.ndarray:
    """M-RoPE positions of `count` text tokens: (3, count) int64, the same in time, height and width."""
    return np.tile(np.arange(start, start + count, dtype=np.int64), (3, 1))


def image_positions(start: int, grid: Grid, merge: int) -> np.ndarray:
    """M-RoPE positions of an image's visual tokens: (3, tokens) int64.

    What follows starts at `start` + the longer side, in merged patches. Source: Qwen2-VL, section 2.1.
    """
    rows, columns = grid[0] // merge, grid[1] // merge
    height, width = np.divmod(np.arange(rows * columns, dtype=np.int64), columns)
    return np.stack((np.zeros_like(height), height, width)) + start
