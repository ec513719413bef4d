"""A network of jina-reranker-m0's architecture with fresh weights."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from lakerank.model.network import JinaVLForRanking
from lakerank.model.prompt import LOGIT_BIAS
from lakerank.model.shape import Shape, network_config
from lakerank.training.config import ShapeConfig
from lakerank.training.optimizer import is_hidden
from lakerank.training.tokenizer import PADDING

#: The tokens that a network's config names.
TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


def fresh_network(shape: ShapeConfig, tokenizer: PreTrainedTokenizerFast, seed: int) -> JinaVLForRanking:
    """Initialise as the shape says; the head starts where relevance is a half."""
    torch.manual_seed(seed)
    token_ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in TOKENS.items()}
    sizes = shape.model_dump(exclude={"initialization"})
    config = network_config(Shape(**sizes), token_ids, tokenizer.convert_tokens_to_ids(PADDING))
    network: JinaVLForRanking = JinaVLForRanking(config).float()
    if shape.initialization == "lecun":
        for name, parameter in network.named_parameters():
            if is_hidden(name, parameter):
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    nn.init.constant_(network.get_parameter("score.2.bias"), LOGIT_BIAS)
    return network
