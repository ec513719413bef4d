"""XLM-RoBERTa cross-encoders' tensors: read from safetensors in either naming, checked key by key.

Sources: for the first naming transformers' `XLMRobertaForSequenceClassification`, as BAAI/bge-reranker-v2-m3 stores it;
for the second jinaai/jina-reranker-v2-base-multilingual, `modeling_xlm_roberta.py`, `mha.py` and `mlp.py`, which follow
flash-attention's BERT: query, key and value are one matrix, in that order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lakerank.errors import CheckpointError
from lakerank.model.checkpoint import few, read_header, weight_files
from lakerank.model.cross_encoder.shape import EncoderShape
from lakerank.model.engine.encoder import EncoderLayer, EncoderWeights, Linear, Norm

#: Tensors by their names in the file; a network that is made of them takes them out, so that nothing is held twice.
Tensors = dict[str, Tensor]

#: Shapes of tensors by their names.
Shapes = Mapping[str, tuple[int, ...]]

#: A buffer of counted numbers that older checkpoints of transformers store.
_UNUSED = frozenset({"roberta.embeddings.position_ids"})


@dataclass(frozen=True, slots=True)
class Naming:
    """How a checkpoint names its tensors. `names`: all of them; `join`: the network that they make."""

    names: Callable[[EncoderShape], Shapes]
    join: Callable[[EncoderShape, Tensors], EncoderWeights]


def load_weights(
    folder: Path, shape: EncoderShape, naming: Naming, dtype: torch.dtype, device: torch.device
) -> EncoderWeights:
    """A checkpoint's tensors on a device.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape.
    """
    files = weight_files(folder)
    found = {name: tuple(size) for file in files for name, (size, _) in read_header(file).items()}
    expected = naming.names(shape)
    _check(expected, {name: size for name, size in found.items() if name not in _UNUSED}, str(folder))
    tensors = {}
    for file in files:
        with safe_open(file, framework="pt") as stored:
            for name in expected.keys() & set(stored.keys()):
                tensors[name] = stored.get_tensor(name).to(device, dtype)
    return naming.join(shape, tensors)


def _check(expected: Shapes, found: Shapes, source: str) -> None:
    faults = []
    if missing := sorted(expected.keys() - found.keys()):
        faults.append(f"{len(missing)} missing: {few(missing)}")
    if unexpected := sorted(found.keys() - expected.keys()):
        faults.append(f"{len(unexpected)} unexpected: {few(unexpected)}")
    both = sorted(expected.keys() & found.keys())
    shapes = [f"{name} {found[name]}, not {expected[name]}" for name in both if found[name] != expected[name]]
    if shapes:
        faults.append(f"{len(shapes)} of another shape: {few(shapes)}")
    if faults:
        raise CheckpointError(
            f"{source}: the weights do not fit config.json ({'; '.join(faults)}); "
            "do all files come from one revision, and is this the naming of this family (model.family)?"
        )


def _bge_names(shape: EncoderShape) -> Shapes:
    """Names and shapes of the tensors as transformers stores them."""
    h, inner = shape.hidden, shape.inner
    names = {**_ends(shape), **_norm("roberta.embeddings.LayerNorm", h)}
    for number in range(shape.layers):
        at = f"roberta.encoder.layer.{number}"
        for part in ("query", "key", "value"):
            names |= _linear(f"{at}.attention.self.{part}", h, h)
        names |= _linear(f"{at}.attention.output.dense", h, h) | _norm(f"{at}.attention.output.LayerNorm", h)
        names |= _linear(f"{at}.intermediate.dense", inner, h) | _linear(f"{at}.output.dense", h, inner)
        names |= _norm(f"{at}.output.LayerNorm", h)
    return names


def _join_bge(shape: EncoderShape, tensors: Tensors) -> EncoderWeights:
    """Tensors under transformers' names to the network's."""

    def layer(number: int) -> EncoderLayer:
        at = f"roberta.encoder.layer.{number}"
        three = [_taken(tensors, f"{at}.attention.self.{part}", Linear) for part in ("query", "key", "value")]
        return EncoderLayer(
            Linear(torch.cat([one.weight for one in three]), torch.cat([one.bias for one in three])),
            _taken(tensors, f"{at}.attention.output.dense", Linear),
            _taken(tensors, f"{at}.attention.output.LayerNorm", Norm),
            _taken(tensors, f"{at}.intermediate.dense", Linear),
            _taken(tensors, f"{at}.output.dense", Linear),
            _taken(tensors, f"{at}.output.LayerNorm", Norm),
        )

    return _joined(shape, tensors, "roberta.embeddings.LayerNorm", layer)


def _jina_names(shape: EncoderShape) -> Shapes:
    """Names and shapes of the tensors as jina-reranker-v2 stores them."""
    h, inner = shape.hidden, shape.inner
    names = {**_ends(shape), **_norm("roberta.emb_ln", h)}
    for number in range(shape.layers):
        at = f"roberta.encoder.layers.{number}"
        names |= _linear(f"{at}.mixer.Wqkv", 3 * h, h) | _linear(f"{at}.mixer.out_proj", h, h)
        names |= _norm(f"{at}.norm1", h) | _norm(f"{at}.norm2", h)
        names |= _linear(f"{at}.mlp.fc1", inner, h) | _linear(f"{at}.mlp.fc2", h, inner)
    return names


def _join_jina(shape: EncoderShape, tensors: Tensors) -> EncoderWeights:
    """Tensors under jina's names to the network's."""

    def layer(number: int) -> EncoderLayer:
        at = f"roberta.encoder.layers.{number}"
        return EncoderLayer(
            _taken(tensors, f"{at}.mixer.Wqkv", Linear),
            _taken(tensors, f"{at}.mixer.out_proj", Linear),
            _taken(tensors, f"{at}.norm1", Norm),
            _taken(tensors, f"{at}.mlp.fc1", Linear),
            _taken(tensors, f"{at}.mlp.fc2", Linear),
            _taken(tensors, f"{at}.norm2", Norm),
        )

    return _joined(shape, tensors, "roberta.emb_ln", layer)


def _ends(shape: EncoderShape) -> dict[str, tuple[int, ...]]:
    """What both namings call alike: the embeddings and the head."""
    h = shape.hidden
    return {
        "roberta.embeddings.word_embeddings.weight": (shape.vocabulary, h),
        "roberta.embeddings.position_embeddings.weight": (shape.positions, h),
        "roberta.embeddings.token_type_embeddings.weight": (shape.types, h),
        **_linear("classifier.dense", h, h),
        **_linear("classifier.out_proj", 1, h),
    }


def _joined(shape: EncoderShape, tensors: Tensors, norm: str, layer: Callable[[int], EncoderLayer]) -> EncoderWeights:
    return EncoderWeights(
        words=tensors.pop("roberta.embeddings.word_embeddings.weight"),
        places=tensors.pop("roberta.embeddings.position_embeddings.weight"),
        types=tensors.pop("roberta.embeddings.token_type_embeddings.weight"),
        norm=_taken(tensors, norm, Norm),
        layers=tuple(layer(number) for number in range(shape.layers)),
        dense=_taken(tensors, "classifier.dense", Linear),
        score=_taken(tensors, "classifier.out_proj", Linear),
    )


def _linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def _taken(tensors: Tensors, name: str, kind: Callable[[Tensor, Tensor], Any]) -> Any:
    return kind(tensors.pop(f"{name}.weight"), tensors.pop(f"{name}.bias"))


#: As transformers stores `XLMRobertaForSequenceClassification`; bge-reranker-v2-m3 and its predecessors.
BGE = Naming(_bge_names, _join_bge)

#: As jina-reranker-v2-base-multilingual is stored.
JINA = Naming(_jina_names, _join_jina)
