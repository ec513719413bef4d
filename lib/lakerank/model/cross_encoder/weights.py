"""Cross-encoders' tensors: read from safetensors in any of three namings, checked key by key.

Sources: transformers' `XLMRobertaForSequenceClassification`, as BAAI/bge-reranker-v2-m3 is stored, and its
`BertForSequenceClassification`, as cross-encoder/ms-marco-MiniLM-L-12-v2 is; for jina's naming
jinaai/jina-reranker-v2-base-multilingual, `modeling_xlm_roberta.py`, `mha.py` and `mlp.py`, which follow
flash-attention's BERT: query, key and value are one matrix, in that order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lakerank.model.checkpoint import check_weights, stored_tensors
from lakerank.model.engine.encoder import EncoderLayer, EncoderShape, EncoderWeights, LayerNorm
from lakerank.model.engine.linear import LinearWeights
from lakerank.model.weights import read_tensors

#: A buffer of counted numbers that older checkpoints of transformers store.
_UNUSED = frozenset({"roberta.embeddings.position_ids", "bert.embeddings.position_ids"})

#: Query, key and value as one matrix; transformers stores them apart.
QKV = "attention.self.qkv"
QKV_PARTS = tuple(f"attention.self.{part}" for part in ("query", "key", "value"))

#: What transformers takes where a config.json of model_type bert, or of another, leaves a key out.
_BERT_DEFAULTS = {"max_position_embeddings": 512, "type_vocab_size": 2, "pad_token_id": 0, "layer_norm_eps": 1e-12}
_DEFAULTS = {"max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5}


@dataclass(frozen=True, slots=True)
class Naming:
    """How a checkpoint names its tensors. `renames`: parts of its names, and of transformers'; `fused`: it has QKV."""

    renames: tuple[tuple[str, str], ...]
    fused: bool

    def transformers_name(self, name: str) -> str:
        """The name in transformers of a tensor of the checkpoint."""
        return reduce(lambda name, rule: name.replace(*rule), self.renames, name)

    def stored_name(self, name: str) -> str:
        """The name in the checkpoint of a tensor of transformers'."""
        return reduce(lambda name, rule: name.replace(*rule[::-1]), self.renames, name)


#: As transformers stores `XLMRobertaForSequenceClassification`; bge-reranker-v2-m3 and its predecessors.
BGE = Naming((), fused=False)

#: As jina-reranker-v2-base-multilingual is stored. The order makes the rules reversible: a name that another contains
#: comes after it.
JINA = Naming(
    (
        ("emb_ln", "embeddings.LayerNorm"),
        ("encoder.layers.", "encoder.layer."),
        ("mixer.Wqkv", QKV),
        ("mixer.out_proj", "attention.output.dense"),
        ("norm1", "attention.output.LayerNorm"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
        ("norm2", "output.LayerNorm"),
    ),
    fused=True,
)


#: As transformers stores `BertForSequenceClassification`, whose head's first layer is the encoder's "pooler".
BERT_NAMES = Naming(
    (
        ("classifier.weight", "classifier.out_proj.weight"),
        ("classifier.bias", "classifier.out_proj.bias"),
        ("bert.pooler.dense", "classifier.dense"),
        ("bert.", "roberta."),
    ),
    fused=False,
)


def read_shape(config: Mapping[str, Any]) -> EncoderShape:
    """The network that a checked config.json describes."""
    config = {**(_BERT_DEFAULTS if config.get("model_type") == "bert" else _DEFAULTS), **config}
    return EncoderShape(
        vocabulary=config["vocab_size"],
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        inner=config["intermediate_size"],
        positions=int(config["max_position_embeddings"]),
        types=int(config["type_vocab_size"]),
        padding=int(config["pad_token_id"]),
        epsilon=float(config["layer_norm_eps"]),
    )


def tensor_shapes(shape: EncoderShape, naming: Naming) -> Mapping[str, tuple[int, ...]]:
    """Shapes of a checkpoint's tensors, by its names."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, size: tuple[int, ...]) -> Tensor:
        shapes[naming.stored_name(name)] = size
        return torch.empty(size, device="meta")

    _assembled(shape, naming.fused, note)
    return shapes


def load_weights(
    folder: Path, shape: EncoderShape, naming: Naming, dtype: torch.dtype, device: torch.device
) -> EncoderWeights:
    """A checkpoint's tensors on a device.

    Raises CheckpointError: a tensor is missing, unexpected or of another shape.
    """
    stored = {name: size for name, (size, _) in stored_tensors(folder).items() if name not in _UNUSED}
    check_weights(tensor_shapes(shape, naming), stored, str(folder))
    tensors = read_tensors(folder, dtype, naming.transformers_name, _UNUSED)
    return _assembled(shape, naming.fused, lambda name, _: tensors.pop(name).to(device))  # none is in memory twice


def _assembled(shape: EncoderShape, fused: bool, take: Callable[[str, tuple[int, ...]], Tensor]) -> EncoderWeights:
    """The network's weights; `take` gives a tensor by its name in transformers and its shape."""
    h, inner = shape.hidden, shape.inner

    def linear(name: str, outputs: int, inputs: int) -> LinearWeights:
        return LinearWeights(take(f"{name}.weight", (outputs, inputs)), take(f"{name}.bias", (outputs,)))

    def norm(name: str) -> LayerNorm:
        return LayerNorm(take(f"{name}.weight", (h,)), take(f"{name}.bias", (h,)))

    def query_key_value(layer: str) -> LinearWeights:
        if fused:
            return linear(f"{layer}.{QKV}", 3 * h, h)
        weights = [take(f"{layer}.{part}.weight", (h, h)) for part in QKV_PARTS]
        return LinearWeights(torch.cat(weights), torch.cat([take(f"{layer}.{part}.bias", (h,)) for part in QKV_PARTS]))

    def layer(name: str) -> EncoderLayer:
        return EncoderLayer(
            query_key_value(name),
            linear(f"{name}.attention.output.dense", h, h),
            norm(f"{name}.attention.output.LayerNorm"),
            linear(f"{name}.intermediate.dense", inner, h),
            linear(f"{name}.output.dense", h, inner),
            norm(f"{name}.output.LayerNorm"),
        )

    return EncoderWeights(
        words=take("roberta.embeddings.word_embeddings.weight", (shape.vocabulary, h)),
        positions=take("roberta.embeddings.position_embeddings.weight", (shape.positions, h)),
        types=take("roberta.embeddings.token_type_embeddings.weight", (shape.types, h)),
        norm=norm("roberta.embeddings.LayerNorm"),
        layers=tuple(layer(f"roberta.encoder.layer.{number}") for number in range(shape.layers)),
        dense=linear("classifier.dense", h, h),
        score=linear("classifier.out_proj", 1, h),
    )
