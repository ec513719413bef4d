"""Cross-encoders' tensors: read from safetensors in any of three namings, checked key by key.

Sources: transformers' `XLMRobertaForSequenceClassification`, as BAAI/bge-reranker-v2-m3 is stored, and its
`BertForSequenceClassification`, as cross-encoder/ms-marco-MiniLM-L-12-v2 is; for jina's naming
jinaai/jina-reranker-v2-base-multilingual, `modeling_xlm_roberta.py`, `mha.py` and `mlp.py`, which follow
flash-attention's BERT: query, key and value are one matrix, in that order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor

from lakerank.model.checkpoint import check_weights, stored_tensors, weight_files
from lakerank.model.cross_encoder.config import check_config
from lakerank.model.engine.encoder import EncoderLayer, EncoderShape, EncoderWeights, LayerNorm
from lakerank.model.engine.linear import LinearWeights

#: A buffer of counted numbers that older checkpoints of transformers store.
_UNUSED = frozenset({"roberta.embeddings.position_ids", "bert.embeddings.position_ids"})

#: Query, key and value as one matrix; transformers stores them apart.
QKV = "attention.self.qkv"
QKV_PARTS = tuple(f"attention.self.{part}" for part in ("query", "key", "value"))

#: What transformers takes where a config.json of model_type bert, or of another, leaves a key out.
_BERT_DEFAULTS = {"max_position_embeddings": 512, "type_vocab_size": 2, "pad_token_id": 0, "layer_norm_eps": 1e-12}
_DEFAULTS = {"max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5}

_Module = TypeVar("_Module", LinearWeights, LayerNorm)


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


def read_shape(config: Mapping[str, Any], source: str) -> EncoderShape:
    """The network that a config.json describes.

    Raises CheckpointError: it lacks a size, or describes what is not computed here.
    """
    check_config(config, source)
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
    h, inner = shape.hidden, shape.inner
    layer = {
        **({QKV: (3 * h, h)} if naming.fused else dict.fromkeys(QKV_PARTS, (h, h))),
        "attention.output.dense": (h, h),
        "attention.output.LayerNorm": (h,),
        "intermediate.dense": (inner, h),
        "output.dense": (h, inner),
        "output.LayerNorm": (h,),
    }
    modules: dict[str, tuple[int, ...]] = {
        "roberta.embeddings.LayerNorm": (h,),
        **{_layer(number, name): size for number in range(shape.layers) for name, size in layer.items()},
        "classifier.dense": (h, h),
        "classifier.out_proj": (1, h),
    }
    tensors = {
        "roberta.embeddings.word_embeddings.weight": (shape.vocabulary, h),
        "roberta.embeddings.position_embeddings.weight": (shape.positions, h),
        "roberta.embeddings.token_type_embeddings.weight": (shape.types, h),
        **{f"{name}.weight": size for name, size in modules.items()},
        **{f"{name}.bias": size[:1] for name, size in modules.items()},
    }
    return {naming.stored_name(name): size for name, size in tensors.items()}


def load_weights(
    folder: Path, shape: EncoderShape, naming: Naming, dtype: torch.dtype, device: torch.device
) -> EncoderWeights:
    """A checkpoint's tensors on a device.

    Raises CheckpointError: a tensor is missing, unexpected or of another shape.
    """
    files = weight_files(folder)
    stored_shapes = {name: size for name, (size, _) in stored_tensors(folder).items()}
    expected = tensor_shapes(shape, naming)
    check_weights(expected, {name: stored_shapes[name] for name in stored_shapes.keys() - _UNUSED}, str(folder))
    tensors = {}
    for file in files:
        with safe_open(file, framework="pt") as stored:
            for name in expected.keys() & set(stored.keys()):
                tensors[naming.transformers_name(name)] = stored.get_tensor(name).to(device, dtype)
    return _assembled(shape, tensors)


def _assembled(shape: EncoderShape, tensors: dict[str, Tensor]) -> EncoderWeights:
    """The network's weights; tensors are taken out, so that none is in memory twice."""

    def module(name: str, kind: type[_Module]) -> _Module:
        return kind(tensors.pop(f"{name}.weight"), tensors.pop(f"{name}.bias"))

    def qkv(number: int) -> LinearWeights:
        if f"{_layer(number, QKV)}.weight" in tensors:
            return module(_layer(number, QKV), LinearWeights)
        parts = [module(_layer(number, part), LinearWeights) for part in QKV_PARTS]
        biases = [part.bias for part in parts if part.bias is not None]
        return LinearWeights(torch.cat([part.weight for part in parts]), torch.cat(biases))

    def layer(number: int) -> EncoderLayer:
        return EncoderLayer(
            qkv(number),
            module(_layer(number, "attention.output.dense"), LinearWeights),
            module(_layer(number, "attention.output.LayerNorm"), LayerNorm),
            module(_layer(number, "intermediate.dense"), LinearWeights),
            module(_layer(number, "output.dense"), LinearWeights),
            module(_layer(number, "output.LayerNorm"), LayerNorm),
        )

    return EncoderWeights(
        words=tensors.pop("roberta.embeddings.word_embeddings.weight"),
        positions=tensors.pop("roberta.embeddings.position_embeddings.weight"),
        types=tensors.pop("roberta.embeddings.token_type_embeddings.weight"),
        norm=module("roberta.embeddings.LayerNorm", LayerNorm),
        layers=tuple(map(layer, range(shape.layers))),
        dense=module("classifier.dense", LinearWeights),
        score=module("classifier.out_proj", LinearWeights),
    )


def _layer(number: int, name: str) -> str:
    return f"roberta.encoder.layer.{number}.{name}"
