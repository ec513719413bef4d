"""A network of jina-reranker-m0's architecture with fresh weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from lakerank.model.jina_m0.prompt import LOGIT_BIAS
from lakerank.model.jina_m0.weights import JinaVLForRanking, Shape, network_config
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


def fresh_network(shape: ShapeConfig, tokenizer: PreTrainedTokenizerFast, seed: int, tap: int) -> JinaVLForRanking:
    """Initialise as the shape says; the head starts where relevance is a half. Matching is to start in layer `tap`."""
    torch.manual_seed(seed)
    token_ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in TOKENS.items()}
    sizes = shape.model_dump(exclude={"initialization"})
    config = network_config(Shape(**sizes), token_ids, tokenizer.convert_tokens_to_ids(PADDING))
    network: JinaVLForRanking = JinaVLForRanking(config).float()
    if shape.initialization != "normal":
        for name, parameter in network.named_parameters():
            if is_hidden(name, parameter):
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    if shape.initialization == "local":
        _start_local(network, tap)
    nn.init.constant_(network.get_parameter("score.2.bias"), LOGIT_BIAS)
    return network


@torch.no_grad()
def _start_local(network: JinaVLForRanking, tap: int) -> None:
    """Make layers below `tap` sum up what is near, and layer `tap` look for what is like the token that looks.

    Below: by their biases alone, queries and keys agree on tokens that are near, by the rotary embedding; values come
    back in the coordinates that they were read from; MLPs add nothing yet. At `tap`: queries read as keys do.
    """
    text = network.model.language_model
    config = network.config.text_config
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    shared = heads // config.num_key_value_heads
    near = _near(text.rotary_emb.inv_freq, width)
    turned = torch.linalg.qr(torch.randn(config.hidden_size, config.hidden_size))[0]
    for index, layer in enumerate(text.layers[: tap + 1]):
        attention = layer.self_attn
        keys = attention.k_proj.weight.shape[0]
        if index == tap:
            by_head = attention.k_proj.weight.view(-1, width, config.hidden_size)
            attention.q_proj.weight.copy_(by_head.repeat_interleave(shared, dim=0).flatten(0, 1))
            continue
        for projection, count in ((attention.q_proj, heads), (attention.k_proj, config.num_key_value_heads)):
            nn.init.zeros_(projection.weight)
            projection.bias.copy_(near.repeat(count))
        rows = turned.roll(-keys * index, dims=0)[:keys]
        attention.v_proj.weight.copy_(rows)
        back = rows.view(-1, width, config.hidden_size).repeat_interleave(shared, dim=0).flatten(0, 1)
        attention.o_proj.weight.copy_(back.T / shared)
        nn.init.zeros_(layer.mlp.down_proj.weight)


def _near(frequencies: Tensor, width: int, reach: float = 8.0, logit: float = 6.0) -> Tensor:
    """A query and key (d,) whose attention logit falls from `logit` to about half at a distance of `reach` tokens."""
    first = min(int((frequencies - 1.4 / reach).abs().argmin()), width // 2 - 2)
    vector = torch.zeros(width)
    for pair in (first, first + 1):
        vector[pair] = (logit / 2 * width**0.5) ** 0.5  # the pair's other half stays 0: cos of the distance
    return vector
