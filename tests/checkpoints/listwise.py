"""Random listwise checkpoints as published: jina-reranker-v3, -v3.5, and a chat model that writes orders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from lakerank.model.checkpoint import EMBEDDED

#: Qwen3's tokenizers have the last two without calling them special.
TOKENS = ("<|im_start|>", "<|im_end|>", "<|embed_token|>", "<|rerank_token|>", "<think>", "</think>")

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
}

#: Chat template of Qwen3's, shortened to what says that it thinks.
CHAT = "{% for m in messages %}{{ m.content }}{% endfor %}{% if enable_thinking is false %}<think></think>{% endif %}"


def write_tokenizer(folder: Path) -> int:
    """The bundled tokenizer with the prompts' tokens; returns the size of the vocabulary."""
    stored = json.loads((EMBEDDED / "tokenizer.json").read_text(encoding="utf-8"))
    added = stored["added_tokens"]
    present, size = {token["content"] for token in added}, 0
    added += [added[0] | {"content": name, "special": name[1] == "|"} for name in TOKENS if name not in present]
    for size, token in enumerate(added, len(stored["model"]["vocab"])):
        token["id"] = size
    (folder / "tokenizer.json").write_text(json.dumps(stored, ensure_ascii=False), encoding="utf-8")
    return size + 1


def write_jina_v3(folder: Path, *, window: int | None = None, seed: int = 0, projected: int = 24, **sizes: Any) -> Path:
    """jina-reranker-v3, or with a `window` -v3.5: two sliding layers before each global one."""
    layers = {**SIZES, **sizes}["num_hidden_layers"]
    kinds = ["full_attention" if number % 3 == 2 else "sliding_attention" for number in range(layers)]
    sliding = {"use_sliding_window": True, "sliding_window": window, "layer_types": kinds} if window else {}
    network = _write(folder, seed, {"architectures": ["JinaForRanking"], **sliding, **sizes})
    hidden = network.config.hidden_size
    tensors = {name: tensor for name, tensor in network.state_dict().items() if name != "lm_head.weight"}
    tensors["projector.0.weight"] = torch.randn(2 * projected, hidden) * hidden**-0.5
    tensors["projector.2.weight"] = torch.randn(projected, 2 * projected) * projected**-0.5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    stated = json.loads((folder / "config.json").read_text())
    stated["auto_map"] = {"AutoModel": "modeling.JinaForRanking"}
    (folder / "config.json").write_text(json.dumps(stated))
    return folder


def write_lister(folder: Path, *, seed: int = 0, **sizes: Any) -> Path:
    """A Qwen3 chat model, which `model.family: list-generation` makes a lister."""
    network = _write(folder, seed, {"architectures": ["Qwen3ForCausalLM"], **sizes})
    tensors = {name: tensor for name, tensor in network.state_dict().items() if name != "lm_head.weight"}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "chat_template.jinja").write_text(CHAT)
    return folder


def _write(folder: Path, seed: int, values: dict[str, Any]) -> Any:
    """Tokenizer and config.json of a Qwen3 whose weights have a variance of one over their inputs."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {**SIZES, "model_type": "qwen3", **values, "vocab_size": write_tokenizer(folder)}
    (folder / "config.json").write_text(json.dumps(values))
    torch.manual_seed(seed)
    network = Qwen3ForCausalLM(Qwen3Config.from_dict(values)).eval()
    for name, weight in network.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    return network
