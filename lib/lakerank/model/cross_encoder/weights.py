"""Cross-encoders' tensors: read from safetensors in any of several namings, checked key by key.

Sources: transformers' `XLMRobertaForSequenceClassification`, as BAAI/bge-reranker-v2-m3 is stored, and its
`BertForSequenceClassification`, as cross-encoder/ms-marco-MiniLM-L-12-v2 is; for jina's naming
jinaai/jina-reranker-v2-base-multilingual, `modeling_xlm_roberta.py`, `mha.py` and `mlp.py`, which follow
flash-attention's BERT: query, key and value are one matrix, in that order; for ModernBERT transformers'
`ModernBertForSequenceClassification`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import starmap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lakerank.model.checkpoint import WEIGHTS_NAME, check_weights, module_files, stored_tensors
from lakerank.model.cross_encoder.config import modern_layers
from lakerank.model.cross_encoder.head import HeadLayer, HeadSettings
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

#: Query, key and value as one matrix; transformers stores them apart.
QKV = "attention.self.qkv"
QKV_PARTS = tuple(f"attention.self.{part}" for part in ("query", "key", "value"))

#: What transformers takes where a config.json of model_type modernbert, bert, or another, leaves a key out.
_MODERN_DEFAULTS = {"max_position_embeddings": 8192, "pad_token_id": 50283, "norm_eps": 1e-5, "type_vocab_size": 0}
_BERT_DEFAULTS = {"max_position_embeddings": 512, "type_vocab_size": 2, "pad_token_id": 0, "layer_norm_eps": 1e-12}
_DEFAULTS = {"max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5}


@dataclass(frozen=True, slots=True)
class Naming:
    """How a checkpoint names its tensors. `renames`: parts of its names, and of transformers'; `fused`: it has QKV.

    `prefix`: of the network's names beside a head, which one that is stored alone has not.
    """

    renames: tuple[tuple[str, str], ...] = ()
    fused: bool = False
    prefix: str = "roberta."

    def transformers_name(self, name: str) -> str:
        """The name in transformers of a tensor of the checkpoint."""
        return reduce(lambda name, rule: name.replace(*rule), self.renames, name)

    def stored_name(self, name: str) -> str:
        """The name in the checkpoint of a tensor of transformers'."""
        return reduce(lambda name, rule: name.replace(*rule[::-1]), self.renames, name)


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

#: As transformers stores `ModernBertForSequenceClassification`, under the names of layers of the same place.
MODERN = Naming(
    (
        ("model.embeddings.tok_embeddings", "roberta.embeddings.word_embeddings"),
        ("model.embeddings.norm", "roberta.embeddings.LayerNorm"),
        ("model.layers.", "roberta.encoder.layer."),
        ("attn.Wqkv", QKV),
        ("attn.Wo", "attention.output.dense"),
        ("attn_norm", "attention.output.LayerNorm"),
        ("mlp.Wi", "intermediate.dense"),
        ("mlp.Wo", "output.dense"),
        ("mlp_norm", "output.LayerNorm"),
    ),
    fused=True,
    prefix="model.",
)


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
        types=int(config["type_vocab_size"]),
        padding=int(config["pad_token_id"]),
        epsilon=float(config["norm_eps" if modern else "layer_norm_eps"]),
        attention=tuple(starmap(LayerAttention, modern_layers(config))) if modern else (),
    )


def tensor_shapes(shape: EncoderShape, naming: Naming, head: HeadSettings) -> Mapping[str, tuple[int, ...]]:
    """Shapes of a checkpoint's tensors, by its names; those of a module have its folder in front."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, size: tuple[int, ...]) -> Tensor:
        shapes[naming.stored_name(name)] = size
        return torch.empty(size, device="meta")

    _assembled(shape, naming.fused, head, note)
    return shapes


def load_weights(
    folder: Path, shape: EncoderShape, naming: Naming, head: HeadSettings, dtype: torch.dtype, device: torch.device
) -> EncoderWeights:
    """A checkpoint's tensors on a device.

    Raises CheckpointError: a tensor is missing, unexpected or of another shape.
    """
    modules = [file.parent for file in module_files(folder) if file.name == WEIGHTS_NAME]
    places = [("" if head.stored else naming.prefix, folder), *((f"{place.name}/", place) for place in modules)]
    stored = {before + name: size for before, place in places for name, (size, _) in stored_tensors(place).items()}
    for name in [name for name in stored if name in _UNUSED or (not head.stored and ".pooler.dense." in name)]:
        del stored[name]
    check_weights(tensor_shapes(shape, naming, head), stored, str(folder))
    read = ((before, read_tensors(place, dtype, str)) for before, place in places)
    tensors = {naming.transformers_name(before + name): part.pop(name) for before, part in read for name in [*part]}
    return _assembled(shape, naming.fused, head, lambda name, _: tensors.pop(name).to(device))  # none is there twice


def _assembled(
    shape: EncoderShape, fused: bool, head: HeadSettings, take: Callable[[str, tuple[int, ...]], Tensor]
) -> EncoderWeights:
    """The network's weights; `take` gives a tensor by its name in transformers and its shape."""
    h, modern = shape.hidden, bool(shape.attention)  # ModernBERT has no biases

    def pair(name: str, size: tuple[int, ...], bias: bool) -> tuple[Tensor, Tensor | None]:
        return take(f"{name}.weight", size), take(f"{name}.bias", size[:1]) if bias else None

    def linear(name: str, outputs: int, inputs: int, bias: bool = not modern) -> LinearWeights:
        return LinearWeights(*pair(name, (outputs, inputs), bias))

    def norm(name: str) -> LayerNorm:
        return LayerNorm(*pair(name, (h,), not modern), shape.epsilon)

    def query_key_value(layer: str) -> LinearWeights:
        if fused:
            return linear(f"{layer}.{QKV}", 3 * h, h)
        weights = [take(f"{layer}.{part}.weight", (h, h)) for part in QKV_PARTS]
        return LinearWeights(torch.cat(weights), torch.cat([take(f"{layer}.{part}.bias", (h,)) for part in QKV_PARTS]))

    def layer(number: int) -> EncoderLayer:
        name = f"roberta.encoder.layer.{number}"
        joined = query_key_value(name)
        return EncoderLayer(
            joined.rows(None, h).packed(),
            joined.rows(h, None).packed(),
            linear(f"{name}.attention.output.dense", h, h).packed(),
            norm(f"{name}.attention.output.LayerNorm") if number or not modern else None,
            linear(f"{name}.intermediate.dense", shape.inner * (1 + modern), h).packed(),
            linear(f"{name}.output.dense", h, shape.inner).packed(),
            norm(f"{name}.output.LayerNorm"),
        )

    def head_layer(part: HeadLayer, inputs: int) -> HeadWeights:
        dense = linear(part.name, part.outputs, inputs, part.bias)
        layer_norm = part.norm and LayerNorm(*pair(part.norm[0], (part.outputs,), part.norm[1]), part.norm[2])
        return HeadWeights(dense, part.activation, layer_norm)

    return EncoderWeights(
        words=take("roberta.embeddings.word_embeddings.weight", (shape.vocabulary, h)),
        positions=None if modern else take("roberta.embeddings.position_embeddings.weight", (shape.positions, h)),
        types=None if modern else take("roberta.embeddings.token_type_embeddings.weight", (shape.types, h)),
        norm=norm("roberta.embeddings.LayerNorm"),
        layers=tuple(map(layer, range(shape.layers))),
        final_norm=norm("model.final_norm") if modern else None,
        head=tuple(map(head_layer, head.layers, [h, *(part.outputs for part in head.layers)])),
        mean=head.mean,
    )
