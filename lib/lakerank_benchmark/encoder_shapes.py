"""Cross-encoders of seeded random weights in both published layouts, and either as transformers loads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor

from lakerank.fingerprint import fingerprint
from lakerank.model.checkpoint import WEIGHTS_NAME, read_json, weight_files
from lakerank.model.cross_encoder.config import EncoderShape, read_shape
from lakerank.model.cross_encoder.weights import BGE, JINA, QKV, QKV_PARTS, tensor_shapes
from lakerank_benchmark.shapes import filled_like
from lakerank_benchmark.texts import WORDS

_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


@dataclass(frozen=True, slots=True)
class EncoderKind:
    """A family by name, and the sizes of a network of it."""

    family: str
    hidden: int
    layers: int
    heads: int
    inner: int
    positions: int


#: By family and shape: `published` is the published network but for its vocabulary, which only the embeddings have;
#: `small` is as deep as jina's and half as wide, for measuring in minutes.
KINDS: Mapping[str, Mapping[str, EncoderKind]] = {
    "bge-reranker": {
        "published": EncoderKind("bge-reranker", 1024, 24, 16, 4096, 8194),
        "small": EncoderKind("bge-reranker", 384, 12, 6, 1536, 8194),
    },
    "jina-reranker-v2": {
        "published": EncoderKind("jina-reranker-v2", 768, 12, 12, 3072, 1026),
        "small": EncoderKind("jina-reranker-v2", 384, 12, 6, 1536, 1026),
    },
}

_VOCABULARY = 12288


def random_encoder_checkpoint(folder: Path, kind: EncoderKind, dtype: str, seed: int = 0) -> Path:
    """The checkpoint of a kind under `folder`, written now unless it is there already; returns where it is."""
    name = fingerprint({"kind": asdict(kind), "dtype": dtype, "seed": seed})
    target = folder / f"random-{kind.family}-{name[:12]}"
    if (target / "config.json").is_file():
        return target
    target.mkdir(parents=True, exist_ok=True)
    config = _config(kind)
    naming = JINA if kind.family == "jina-reranker-v2" else BGE
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: filled_like(name, torch.empty(size, device="meta"), generator, dtype)
        for name, size in sorted(tensor_shapes(read_shape(config, str(target)), naming).items())
    }
    save_file(tensors, target / WEIGHTS_NAME, metadata={"format": "pt"})
    _write_tokenizer(target)
    (target / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return target


def _config(kind: EncoderKind) -> dict[str, Any]:
    config: dict[str, Any] = {
        "architectures": ["XLMRobertaForSequenceClassification"],
        "model_type": "xlm-roberta",
        "vocab_size": _VOCABULARY,
        "hidden_size": kind.hidden,
        "num_hidden_layers": kind.layers,
        "num_attention_heads": kind.heads,
        "intermediate_size": kind.inner,
        "max_position_embeddings": kind.positions,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
    }
    return config | ({"use_flash_attn": True} if kind.family == "jina-reranker-v2" else {})


def _write_tokenizer(folder: Path) -> None:
    """XLM-RoBERTa's kind of tokenizer, over the words that texts are made of."""
    pieces = dict.fromkeys([*_LETTERS, "▁", *(f"▁{word}" for word in WORDS)])
    vocabulary = [(token, 0.0) for token in _SPECIAL]
    vocabulary += [(piece, -10.0 if len(piece) == 1 else -5.0) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram([*vocabulary, ("<mask>", 0.0)], unk_id=3, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    names = [*_SPECIAL, "<mask>"]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in names])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "unk": "<unk>", "pad": "<pad>"}
    stated: dict[str, str | int] = {f"{role}_token": token for role, token in roles.items()}
    stated |= {"mask_token": "<mask>", "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8192}
    (folder / "tokenizer_config.json").write_text(json.dumps(stated), encoding="utf-8")


def for_transformers(checkpoint: Path, target: Path) -> Path:
    """A folder that transformers loads as it is: the checkpoint itself, or a copy of jina's under transformers' names.

    Raises:
        CheckpointError: config.json describes another network.
    """
    config = read_json(checkpoint / "config.json")
    shape = read_shape(config, str(checkpoint))
    files = weight_files(checkpoint)
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    if "roberta.emb_ln.weight" not in tensors:
        return checkpoint
    target.mkdir(parents=True, exist_ok=True)
    save_file(_renamed(shape, tensors), target / WEIGHTS_NAME, metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, target / name)
    plain = {key: value for key, value in config.items() if key not in ("auto_map", "use_flash_attn")}
    (target / "config.json").write_text(json.dumps(plain | {"model_type": "xlm-roberta"}), encoding="utf-8")
    return target


def _renamed(shape: EncoderShape, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """jina's tensors under transformers' names, query, key and value apart."""
    renamed = {}
    for stored, tensor in tensors.items():
        name = JINA.transformers_name(stored)
        if QKV not in name:
            renamed[name] = tensor
            continue
        for part, piece in zip(QKV_PARTS, torch.split(tensor, shape.hidden), strict=True):
            renamed[name.replace(QKV, part)] = piece.contiguous()
    return renamed
