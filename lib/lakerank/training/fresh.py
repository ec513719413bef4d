"""A network of jina-reranker-m0's architecture with fresh weights."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLConfig

from lakerank.model.network import JinaVLForRanking
from lakerank.model.prompt import LOGIT_BIAS
from lakerank.training.config import ShapeConfig
from lakerank.training.tokenizer import PADDING


def fresh_network(shape: ShapeConfig, tokenizer: PreTrainedTokenizerFast, seed: int) -> JinaVLForRanking:
    """Default initialisation (normal, standard deviation 0.02); the head starts where relevance is a half."""
    torch.manual_seed(seed)
    network: JinaVLForRanking = JinaVLForRanking(network_config(shape, tokenizer)).float()
    nn.init.constant_(network.get_parameter("score.2.bias"), LOGIT_BIAS)
    return network


def network_config(shape: ShapeConfig, tokenizer: PreTrainedTokenizerFast) -> Qwen2VLConfig:
    """M-RoPE sections keep the published proportions, 16 : 24 : 24 of half a head's width."""
    half = shape.hidden_size // shape.heads // 2
    sections = [half // 4, (half - half // 4) // 2]
    ids = tokenizer.convert_tokens_to_ids
    return Qwen2VLConfig(
        text_config={
            "vocab_size": shape.vocabulary,
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.key_value_heads,
            "pad_token_id": ids(PADDING),
            "bos_token_id": ids(PADDING),
            "eos_token_id": ids(PADDING),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [*sections, half - sum(sections)],
            },
        },
        vision_config={
            "depth": shape.vision_depth,
            "embed_dim": shape.vision_width,
            "hidden_size": shape.hidden_size,
            "num_heads": shape.vision_heads,
        },
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )
