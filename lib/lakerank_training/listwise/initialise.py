"""Weights to start a `ListNetwork` from: a solution of the task that is written down, for training to go on from.

So small a network would learn to match texts from random weights only in hours. Here its layers start as:

1. Every token attends to the number of its passage, and copies that number's code.
2. A document's last token attends to the tokens with its code, the query's to those near it: each holds the mean of its
   text's vectors. The cosine of two such means is the score of a pair.
3. All further layers: the query's token adds the mean of documents' tokens to itself, weighted by their similarity:
   pseudo-relevance feedback (Rocchio 1971), with attention in place of so many top documents. The prompt's first token,
   which has nothing to add, weighs as much as about ten documents: one alone hardly moves the query, and a pair is
   scored as before. A document's token attends to that first one alone.

Hidden states begin with the bundled checkpoint's vectors; the columns behind say what a token is.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import Qwen3Config

from lakerank.model.checkpoint import EMBEDDED, WEIGHTS_NAME
from lakerank_training.listwise.config import ListShapeConfig
from lakerank_training.listwise.network import DOCUMENT_TOKEN, QUERY_TOKEN, ListNetwork

#: Each head copies all of `CONTENT`.
WIDTH, HEADS, HEAD_WIDTH, THETA = 256, 2, 192, 1e8

#: Width of the bundled checkpoint's vectors.
CONTENT = 192

#: Columns of hidden states: 1 everywhere; 1 in texts, -1 in markup; 1 for a passage's number, else -1; 1 for the token
#: behind a document, else -1; 1 for that behind the query, else 0; 48 for the prompt's first, else 0; a number's code.
CONSTANT, TEXT, NUMBER, DOCUMENT, QUERY, FIRST = range(CONTENT, CONTENT + 6)
CODE = slice(FIRST + 1, FIRST + 29)

#: Tokens that number passages; the last one stands before the query.
_NUMBERS = (*"0123456789", "quer")

#: Tokens between a number and its text.
_MARKUP = ('"', ">", "Ċ", "y")

#: Pairs of a head's dimensions. Rotary embedding turns pair i by `THETA ** (-i / 96)` a token: these by .03, .01, .003
#: and .001. With each weighing twice as much as the one before, their sum falls over the length of a list.
_DISTANCES, _PHASE = (18, 24, 30, 36), math.pi / 6

#: Its sum with the others falls within a query's few tokens.
_NEAR = 15

#: Pairs that are turned by next to nothing, for what does not depend on distances.
_CONTENT_PAIRS, _CODE_PAIRS, _FLAGS = range(47, 95), range(60, 74), (95, 95 + HEAD_WIDTH // 2)


def initialise(shape: ListShapeConfig, tokenizer: Tokenizer, seed: int) -> ListNetwork:
    """A network whose weights start as the module says."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=WIDTH, num_hidden_layers=shape.layers,
        intermediate_size=shape.intermediate_size, num_attention_heads=HEADS, num_key_value_heads=HEADS,
        head_dim=HEAD_WIDTH, max_position_embeddings=131072, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
    )  # fmt: skip
    network = ListNetwork(config, CONTENT).float()
    with torch.no_grad():
        vectors = bundled_vectors(tokenizer.get_vocab_size())
        _small_random(network)
        _embed(network.model.embed_tokens.weight, vectors, tokenizer)
        layers = network.model.layers
        _find_numbers(layers[0].self_attn)
        _sum_texts(layers[1].self_attn)
        for number, layer in enumerate(layers[2:], start=1):
            _feed_back(layer.self_attn, vectors, number, shape.feedback)
        _project(network.projector)
    for part in (network.model.embed_tokens, *layers[: shape.frozen_layers]) if shape.frozen_layers else ():
        part.requires_grad_(False)
    network.model.set_attn_implementation("sdpa")
    return network


def bundled_vectors(size: int) -> Tensor:
    """Vectors (size, 192) of the bundled checkpoint's tokens as its first layer reads them, centred; 0 for others."""
    stored = load_file(EMBEDDED / WEIGHTS_NAME)
    vectors = F.normalize(stored["model.embed_tokens.weight"].float(), dim=1)
    vectors = vectors * stored["model.layers.0.input_layernorm.weight"].float()
    vectors = vectors - vectors.mean(0)
    vectors = vectors / vectors.square().mean().sqrt()
    return F.pad(vectors, (0, 0, 0, size - len(vectors)))


def _small_random(network: ListNetwork) -> None:
    """What the analytic solution does not use starts near zero, but not at it: gradients tell such weights apart."""
    for weight in network.parameters():
        if weight.ndim == 2:
            nn.init.normal_(weight, std=0.02 * weight.shape[1] ** -0.5)
    for layer in network.model.layers:
        for projection in (layer.mlp.gate_proj, layer.mlp.up_proj):
            nn.init.normal_(projection.weight, std=projection.weight.shape[1] ** -0.5)


def _embed(embeddings: Tensor, vectors: Tensor, tokenizer: Tokenizer) -> None:
    nn.init.normal_(embeddings, std=0.1)
    embeddings[:, :CONTENT] = vectors
    embeddings[:, CONSTANT] = embeddings[:, TEXT] = 1.0
    embeddings[:, [NUMBER, DOCUMENT]] = -1.0
    embeddings[:, [QUERY, FIRST]] = embeddings[:, CODE] = 0.0

    def tokens(*names: str) -> list[int]:
        vocabulary = tokenizer.get_vocab()
        return [vocabulary[name] for name in names]

    read, first, numbers = tokens(DOCUMENT_TOKEN, QUERY_TOKEN), tokens("<|im_start|>"), tokens(*_NUMBERS)
    embeddings[[*read, *first, *numbers, *tokens(*_MARKUP)], TEXT] = -1.0
    embeddings[numbers, NUMBER] = 1.0
    embeddings[read[0], DOCUMENT] = embeddings[read[1], QUERY] = 1.0
    embeddings[first, :CONTENT], embeddings[first, FIRST] = 0.0, 48.0
    width = CODE.stop - CODE.start
    embeddings[numbers, CODE] = _orthogonal(width)[: len(numbers)] * math.sqrt(width)


def _orthogonal(size: int) -> Tensor:
    orthogonal: Tensor = torch.linalg.qr(torch.randn(size, size))[0]
    return orthogonal


def _find_numbers(attention: Any) -> None:
    """Of the numbers before a token, the nearest one."""
    for head in range(HEADS):
        _fall(attention, head, {CONSTANT: 1.0}, 1.0)
        _relate(attention, head, _FLAGS[0], {CONSTANT: 1.7}, {NUMBER: 1.7})
    _scale(attention, 160.0)
    _copy(attention, CODE, 1.0)


def _sum_texts(attention: Any) -> None:
    """Tokens of texts with the same code, and for the query's token those near it."""
    for head in range(HEADS):
        rows = _rows(head, _CODE_PAIRS)
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight[rows, CODE] += torch.eye(len(rows))
        _relate(attention, head, _FLAGS[0], {CONSTANT: 3.5}, {TEXT: 3.5})
        _relate(attention, head, _FLAGS[1], {FIRST: 2.0}, {FIRST: 2.0})  # the first token stays as it is
        _fall(attention, head, {CONSTANT: 1.0, QUERY: 2.0}, 1.0)
        _relate(attention, head, _NEAR, {QUERY: 8.0}, {CONSTANT: 3.0})  # a query is short
    _scale(attention, 25.0)
    _copy(attention, slice(0, CONTENT), 4.0)


def _feed_back(attention: Any, vectors: Tensor, number: int, gain: float) -> None:
    """Documents alike to the query, and the prompt's first token.

    The constants are found by looking at weights of attention: a document by itself has .01 to .2, sixteen in a list .4
    to .9 together. Those of the query's token grow with its state from round to round.
    """
    directions = torch.linalg.eigh(vectors.T @ vectors)[1].T.flip(0)  # (192, 192), by falling variance
    for head in range(HEADS):
        rows = _rows(head, _CONTENT_PAIRS)
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight[rows, :CONTENT] += directions[: len(rows)]
        _relate(attention, head, _FLAGS[0], {QUERY: 20.0 * number}, {DOCUMENT: 60.0})
        _relate(attention, head, _FLAGS[1], {CONSTANT: 40.0, QUERY: 25.0 * number - 40.0}, {FIRST: 16.0})
    _scale(attention, 58.0)
    _copy(attention, slice(0, CONTENT), gain)


def _fall(attention: Any, head: int, query: dict[int, float], key: float) -> None:
    """The similarity of two tokens falls with their distance."""
    for step, pair in enumerate(_DISTANCES):
        weight = math.sqrt(2.0**step)
        for half, part in ((0, math.cos(_PHASE)), (HEAD_WIDTH // 2, math.sin(_PHASE))):
            turned = {column: weight * part * value for column, value in query.items()}
            _relate(attention, head, pair + half, turned, {} if half else {CONSTANT: weight * key})


def _rows(head: int, pairs: range) -> list[int]:
    """Both dimensions of a head's pairs."""
    start = head * HEAD_WIDTH
    return [start + pair + half for pair in pairs for half in (0, HEAD_WIDTH // 2)]


def _relate(attention: Any, head: int, row: int, query: dict[int, float], key: dict[int, float]) -> None:
    """A product of columns of the two tokens is part of their similarity."""
    for projection, columns in ((attention.q_proj, query), (attention.k_proj, key)):
        for column, value in columns.items():
            projection.weight[head * HEAD_WIDTH + row, column] = value


def _scale(attention: Any, most: float) -> None:
    """The logit of two tokens is `most` times the cosine of their query and key."""
    for norm in (attention.q_norm, attention.k_norm):
        norm.weight.fill_(math.sqrt(most / math.sqrt(HEAD_WIDTH)))


def _copy(attention: Any, columns: slice, gain: float) -> None:
    """So many times what a token attends to, the mean of its heads, is added to its state, in these columns."""
    count = columns.stop - columns.start
    for head in range(HEADS):
        rows = slice(head * HEAD_WIDTH, head * HEAD_WIDTH + count)
        attention.v_proj.weight[rows, columns] += torch.eye(count)
        attention.o_proj.weight[columns, rows] += gain / HEADS * torch.eye(count)


def _project(projector: Any) -> None:
    """The identity of the vectors: a ReLU of a rotation and of its opposite, rotated back."""
    rotation = _orthogonal(CONTENT)
    projector[0].weight[:, :CONTENT] += torch.cat([rotation, -rotation])
    projector[2].weight += torch.cat([rotation.T, -rotation.T], dim=1)
