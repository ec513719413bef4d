"""Cross-encoders' tensors: read from safetensors in any of several namings, checked key by key.

Sources: transformers' `XLMRobertaForSequenceClassification`, as BAAI/bge-reranker-v2-m3 is stored, and its
`BertForSequenceClassification`, as cross-encoder/ms-marco-MiniLM-L-12-v2 is; for jina's naming
jinaai/jina-reranker-v2-base-multilingual, `modeling_xlm_roberta.py`, `mha.py` and `mlp.py`, which follow
flash-attention's BERT: query, key and value are one matrix, in that order; for ModernBERT transformers'
`ModernBertForSequenceClassification`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from itertools import starmap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lakerank.model.checkpoint import WEIGHTS_NAME, check_weights, module_files, stored_tensors
from lakerank.model.cross_encoder.config import modern_layers
from lakerank.model.cross_encoder.head import HeadSettings
from lakerank.model.engine.encoder import (
    EncoderLayer,
    EncoderShape,
    EncoderWeights,
    HeadWeights,
    LayerAttention,
    LayerNorm,
)
from lakerank.model.engine.linear import LinearWeights
from lakerank.model.weights import read_tensors

#: A buffer of counted numbers that older checkpoints of transformers store.
_UNUSED = frozenset({"roberta.embeddings.position_ids", "bert.embeddings.position_ids"})

#: Of a network that is stored without its head: the same, and a head that sentence-transformers does not read.
_UNUSED_ALONE = frozenset({"embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"})

#: Query, key and value as one matrix; transformers stores them apart.
QKV = "attention.self.qkv"
QKV_PARTS = tuple(f"attention.self.{part}" for part in ("query", "key", "value"))

#: What transformers takes where a config.json of model_type modernbert, bert, or another, leaves a key out.
_MODERN_DEFAULTS = {"max_position_embeddings": 8192, "pad_token_id": 50283, "norm_eps": 1e-5}
_BERT_DEFAULTS = {"max_position_embeddings": 512, "type_vocab_size": 2, "pad_token_id": 0, "layer_norm_eps": 1e-12}
_DEFAULTS = {"max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5}


@dataclass(frozen=True, slots=True)
class Naming:
    """How a checkpoint names its tensors. `renames`: parts of its names, and of transformers'; `fused`: it has QKV.

    `alone`: it is stored without its head, and so its names are without their `prefix`.
    """

    renames: tuple[tuple[str, str], ...] = ()
    fused: bool = False
    prefix: str = "roberta."
    alone: bool = False

    def transformers_name(self, name: str) -> str:
        """The name in transformers of a tensor of the checkpoint."""
        return reduce(lambda name, rule: name.replace(*rule), self.renames, self.prefix * self.alone + name)

    def stored_name(self, name: str) -> str:
        """The name in the checkpoint of a tensor of transformers'."""
        name = reduce(lambda name, rule: name.replace(*rule[::-1]), self.renames, name)
        return name.removeprefix(self.prefix) if self.alone else name


#: As transformers stores `XLMRobertaForSequenceClassification`; bge-reranker-v2-m3 and its predecessors.
BGE = Naming()

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
    prefix="bert.",
)

#: As transformers stores `ModernBertForSequenceClassification`.
MODERN = Naming(prefix="model.")


def read_shape(config: Mapping[str, Any]) -> EncoderShape:
    """The network that a checked config.json describes."""
    modern, bert = (config.get("model_type") == name for name in ("modernbert", "bert"))
    config = {**(_MODERN_DEFAULTS if modern else _BERT_DEFAULTS if bert else _DEFAULTS), **config}
    return EncoderShape(
        vocabulary=config["vocab_size"],
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        inner=config["intermediate_size"],
        positions=int(config["max_position_embeddings"]),
        types=0 if modern else int(config["type_vocab_size"]),
        padding=int(config["pad_token_id"]),
        epsilon=float(config["norm_eps" if modern else "layer_norm_eps"]),
        attention=tuple(starmap(LayerAttention, modern_layers(config))) if modern else (),
        biases=tuple(bool(config.get(name, not modern)) for name in ("norm_bias", "attention_bias", "mlp_bias")),
    )


def tensor_shapes(shape: EncoderShape, naming: Naming, head: HeadSettings) -> Mapping[str, tuple[int, ...]]:
    """Shapes of a checkpoint's tensors, by its names, with a module's folder in front where it is in one."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, size: tuple[int, ...]) -> Tensor:
        shapes[naming.stored_name(name)] = size
        return torch.empty(size, device="meta")

    _assembled(shape, naming, head, note)
    return shapes


def load_weights(
    folder: Path, shape: EncoderShape, naming: Naming, head: HeadSettings, dtype: torch.dtype, device: torch.device
) -> EncoderWeights:
    """A checkpoint's tensors on a device.

    Raises CheckpointError: a tensor is missing, unexpected or of another shape.
    """
    naming, unused = (naming, _UNUSED) if head.stored else (replace(naming, alone=True), _UNUSED_ALONE)
    modules = [file.parent for file in module_files(folder) if file.name == WEIGHTS_NAME]
    stored = {name: size for name, (size, _) in stored_tensors(folder).items() if name not in unused}
    for module in modules:
        stored |= {f"{module.name}/{name}": size for name, (size, _) in stored_tensors(module).items()}
    check_weights(tensor_shapes(shape, naming, head), stored, str(folder))
    tensors = read_tensors(folder, dtype, naming.transformers_name, unused)
    for module in modules:
        tensors |= read_tensors(module, dtype, f"{module.name}/{{}}".format)
    return _assembled(shape, naming, head, lambda name, _: tensors.pop(name).to(device))  # none is in memory twice


#: Gives a tensor by its name in transformers, or in a module's folder, and its shape.
Take = Callable[[str, tuple[int, ...]], Tensor]


def _linear(take: Take, name: str, outputs: int, inputs: int, bias: bool = True) -> LinearWeights:
    weight = take(f"{name}.weight", (outputs, inputs))
    return LinearWeights(weight, take(f"{name}.bias", (outputs,)) if bias else None)


def _norm(take: Take, name: str, size: int, bias: bool, epsilon: float) -> LayerNorm:
    return LayerNorm(take(f"{name}.weight", (size,)), take(f"{name}.bias", (size,)) if bias else None, epsilon)


def _assembled(shape: EncoderShape, naming: Naming, head: HeadSettings, take: Take) -> EncoderWeights:
    h, inputs, layers = shape.hidden, shape.hidden, []
    for layer in head.layers:
        norm = layer.norm and _norm(take, layer.norm.name, layer.outputs, layer.norm.bias, layer.norm.epsilon)
        dense = _linear(take, layer.name, layer.outputs, inputs, layer.bias)
        layers.append(HeadWeights(dense, layer.activation, norm))
        inputs = layer.outputs
    if shape.attention:
        return EncoderWeights(
            words=take("model.embeddings.tok_embeddings.weight", (shape.vocabulary, h)),
            norm=_norm(take, "model.embeddings.norm", h, shape.biases[0], shape.epsilon),
            layers=tuple(_modern_layer(shape, take, number) for number in range(shape.layers)),
            head=tuple(layers),
            mean=head.mean,
            final_norm=_norm(take, "model.final_norm", h, shape.biases[0], shape.epsilon),
        )
    embeddings = "roberta.embeddings"
    return EncoderWeights(
        words=take(f"{embeddings}.word_embeddings.weight", (shape.vocabulary, h)),
        norm=_norm(take, f"{embeddings}.LayerNorm", h, True, shape.epsilon),
        layers=tuple(_layer(shape, naming.fused, take, number) for number in range(shape.layers)),
        head=tuple(layers),
        mean=head.mean,
        positions=take(f"{embeddings}.position_embeddings.weight", (shape.positions, h)),
        types=take(f"{embeddings}.token_type_embeddings.weight", (shape.types, h)),
    )


def _layer(shape: EncoderShape, fused: bool, take: Take, number: int) -> EncoderLayer:
    """A layer of XLM-RoBERTa or BERT."""
    h, name = shape.hidden, f"roberta.encoder.layer.{number}"
    if fused:
        joined = _linear(take, f"{name}.{QKV}", 3 * h, h)
    else:
        weights = [take(f"{name}.{part}.weight", (h, h)) for part in QKV_PARTS]
        joined = LinearWeights(torch.cat(weights), torch.cat([take(f"{name}.{part}.bias", (h,)) for part in QKV_PARTS]))
    return EncoderLayer(
        joined.rows(None, h).packed(),
        joined.rows(h, None).packed(),
        _linear(take, f"{name}.attention.output.dense", h, h).packed(),
        _norm(take, f"{name}.attention.output.LayerNorm", h, True, shape.epsilon),
        _linear(take, f"{name}.intermediate.dense", shape.inner, h).packed(),
        _linear(take, f"{name}.output.dense", h, shape.inner).packed(),
        _norm(take, f"{name}.output.LayerNorm", h, True, shape.epsilon),
    )


def _modern_layer(shape: EncoderShape, take: Take, number: int) -> EncoderLayer:
    """A layer of ModernBERT, whose first one begins without a norm."""
    h, name, (norms, attention, mlp) = shape.hidden, f"model.layers.{number}", shape.biases
    joined = _linear(take, f"{name}.attn.Wqkv", 3 * h, h, attention)
    return EncoderLayer(
        joined.rows(None, h).packed(),
        joined.rows(h, None).packed(),
        _linear(take, f"{name}.attn.Wo", h, h, attention).packed(),
        _norm(take, f"{name}.attn_norm", h, norms, shape.epsilon) if number else None,
        _linear(take, f"{name}.mlp.Wi", 2 * shape.inner, h, mlp).packed(),
        _linear(take, f"{name}.mlp.Wo", h, shape.inner, mlp).packed(),
        _norm(take, f"{name}.mlp_norm", h, norms, shape.epsilon),
    )
