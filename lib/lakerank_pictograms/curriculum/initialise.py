"""A network of jina-reranker-m0's architecture initialised from scratch, and a tokenizer trained on the dataset."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import chain, repeat
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from lakerank.limits import Limits
from lakerank.model.jina_m0.config import DOCUMENT, LOGIT_BIAS, QUERY, SCORE_TOKEN_ID
from lakerank.model.jina_m0.tokenize import SpecialTokens
from lakerank.model.jina_m0.weights import JinaVLForRanking
from lakerank.model.preprocess.images import PatchShape
from lakerank_pictograms.curriculum.config import ShapeConfig
from lakerank_pictograms.network import Shape, network_config, published_config
from lakerank_training.model import TrainableModel

#: Qwen2's way of cutting text before BPE (its published tokenizer.json).
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PADDING = "<|endoftext|>"
SPECIAL_TOKENS = (
    PADDING,
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

#: What transformers 4 and 5 both know, and Qwen2-VL's processor takes; 5 would write a name that 4 does not know.
TOKENIZER_CLASS = "Qwen2TokenizerFast"

#: How often the prompt's own words are counted, so that they become single tokens.
PROMPT_COUNT = 5000

#: The tokens that a network's config names.
TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}

#: Matrices that are tables of vectors or read one out, not maps from one hidden state to another.
_NOT_HIDDEN = ("embed_tokens", "proxies.", "score.")


def initialise_model(shape: ShapeConfig, texts: Iterable[str], seed: int, tap: int) -> TrainableModel:
    """A network and its tokenizer, trained on the texts. Matching is to start in layer `tap`."""
    tokenizer = train_tokenizer(texts, shape.vocabulary)
    network = initialise_network(shape, tokenizer, seed, tap)
    network.set_attn_implementation("eager")  # training's masks are additive floats
    config = network.config
    special = SpecialTokens(
        vision_start=config.vision_start_token_id,
        vision_end=config.vision_end_token_id,
        image=config.image_token_id,
        score=SCORE_TOKEN_ID,
    )
    patches = PatchShape()

    def save_beside(folder: Path) -> None:
        save_tokenizer(tokenizer, folder)
        preprocessor = {
            "image_processor_type": "Qwen2VLImageProcessor",
            "image_mean": list(patches.mean),
            "image_std": list(patches.std),
            "patch_size": patches.side,
            "merge_size": patches.merge,
            "temporal_patch_size": patches.frames,
            "min_pixels": Limits().min_pixels,
            "max_pixels": Limits().max_pixels,
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n", encoding="utf-8")

    return TrainableModel(
        network, tokenizer, special, patches, LOGIT_BIAS, published_config(config), save_beside=save_beside
    )


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter maps hidden states to hidden states."""
    return parameter.ndim == 2 and not any(part in name for part in _NOT_HIDDEN)


def initialise_network(shape: ShapeConfig, tokenizer: Tokenizer, seed: int, tap: int) -> JinaVLForRanking:
    """Initialise as the shape says; the head starts where relevance is a half. Matching is to start in layer `tap`."""
    torch.manual_seed(seed)
    token_ids = {name: _token_id(tokenizer, token) for name, token in TOKENS.items()}
    sizes = shape.model_dump(exclude={"initialization"})
    config = network_config(Shape(**sizes), token_ids, _token_id(tokenizer, PADDING))
    network: JinaVLForRanking = JinaVLForRanking(config).float()
    if shape.initialization != "normal":
        for name, parameter in network.named_parameters():
            if is_hidden_matrix(name, parameter):
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    if shape.initialization == "local":
        _initialise_local(network, tap)
    nn.init.constant_(network.get_parameter("score.2.bias"), LOGIT_BIAS)
    return network


def _token_id(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    if token_id is None:
        raise ValueError(f"no token {token}")
    return int(token_id)


@torch.no_grad()
def _initialise_local(network: JinaVLForRanking, tap: int) -> None:
    """Make layers below `tap` sum up what is near, and layer `tap` look for what is like the token that looks.

    Below: by their biases alone, queries and keys agree on tokens that are near, by the rotary embedding; values come
    back in the coordinates that they were read from; MLPs add nothing yet. At `tap`: queries read as keys do.
    """
    text = network.model.language_model
    config = network.config.text_config
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    group = heads // config.num_key_value_heads
    near = _near_key(text.rotary_emb.inv_freq, width)
    orthogonal = torch.linalg.qr(torch.randn(config.hidden_size, config.hidden_size))[0]
    for index, layer in enumerate(text.layers[: tap + 1]):
        attention = layer.self_attn
        keys = attention.k_proj.weight.shape[0]
        if index == tap:
            by_head = attention.k_proj.weight.view(-1, width, config.hidden_size)
            attention.q_proj.weight.copy_(by_head.repeat_interleave(group, dim=0).flatten(0, 1))
            continue
        for projection, count in ((attention.q_proj, heads), (attention.k_proj, config.num_key_value_heads)):
            nn.init.zeros_(projection.weight)
            projection.bias.copy_(near.repeat(count))
        rows = orthogonal.roll(-keys * index, dims=0)[:keys]
        attention.v_proj.weight.copy_(rows)
        back = rows.view(-1, width, config.hidden_size).repeat_interleave(group, dim=0).flatten(0, 1)
        attention.o_proj.weight.copy_(back.T / group)
        nn.init.zeros_(layer.mlp.down_proj.weight)


def _near_key(frequencies: Tensor, width: int, reach: float = 8.0, logit: float = 6.0) -> Tensor:
    """A query and key (d,) whose attention logit falls from `logit` to about half at a distance of `reach` tokens."""
    first = min(int((frequencies - 1.4 / reach).abs().argmin()), width // 2 - 2)
    vector = torch.zeros(width)
    for pair in (first, first + 1):
        vector[pair] = (logit / 2 * width**0.5) ** 0.5  # the pair's other half stays 0: cos of the distance
    return vector


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Train on texts and the prompt around them. Special tokens come last, so that token 100 stays an ordinary byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    prompt = repeat(DOCUMENT.prefix + DOCUMENT.suffix + QUERY.prefix, PROMPT_COUNT)
    tokenizer.train_from_iterator(chain(texts, prompt), trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    tokenizer.encode_special_tokens = True  # a special token spelled out in a text stays text
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json, and a tokenizer_config.json that other programs can read."""
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PADDING, eos_token=PADDING).save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) | {"tokenizer_class": TOKENIZER_CLASS}
    file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
