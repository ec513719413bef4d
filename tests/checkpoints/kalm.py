"""Random KaLM-Rerankers in the published layout, made with transformers and tokenizers alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import T5Gemma2Config, T5Gemma2ForConditionalGeneration

from checkpoints.encoders import WORDS

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
_PROMPT = (
    "user\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. Note that "
    'the answer can only be "yes" or "no".\n\n<Instruct>: Given a query, retrieve documents that answer the query.\n'
    "<Query>: <Document>: \nmodel\n\n\n\n yes no yes no"
)
_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
}


def write_tokenizer(folder: Path) -> Tokenizer:
    """Gemma's kind: BPE with bytes to fall back on and blanks as a sign, which reads texts whole, but whose pieces are
    of letters, of signs or of line ends."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    words = ["yes", "no", *WORDS]
    texts = [_PROMPT, *words, *(f" {word}" for word in words)]
    pieces = [piece for text in texts for piece in re.findall(r" ?\w+| ?[^\w\s]+|\n+| +", text)]
    tokenizer.train_from_iterator(pieces * 20, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    stored = json.loads((folder / "tokenizer.json").read_text())
    stored["added_tokens"] = [token for token in stored["added_tokens"] if token["content"] in SPECIAL]
    # bytes are pieces, no special tokens
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    names = {"pad": "<pad>", "eos": "<eos>", "bos": "<bos>", "unk": "<unk>"}
    stated: dict[str, Any] = {f"{name}_token": token for name, token in names.items()}
    stated["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def write_kalm(
    folder: Path, seed: int = 0, dtype: str = "float32", old_names: bool = False, **settings: Any
) -> T5Gemma2ForConditionalGeneration:
    """A random checkpoint; `settings` are those of sentence-transformers' module. Returns its network."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = write_tokenizer(folder).get_vocab_size()
    half = {
        "vocab_size": vocabulary, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 16,
        "layer_types": _LAYERS, "rope_parameters": _ROPE, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
    }  # fmt: skip
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 1, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = T5Gemma2Config(
        encoder={"text_config": half | {"sliding_window": 25}, "vision_config": vision, "mm_tokens_per_image": 4,
                 "eoi_token_index": vocabulary - 1},
        decoder=half | {"sliding_window": 512},
        image_token_index=vocabulary - 2,
    )  # fmt: skip
    torch.manual_seed(seed)
    network = T5Gemma2ForConditionalGeneration(config).eval()
    _randomise(network, seed)
    network = network.to(getattr(torch, dtype))
    config.architectures = ["T5Gemma2ForConditionalGeneration"]
    config.save_pretrained(folder)
    tied = ("lm_head.", "model.decoder.embed_tokens.")
    tensors = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(tied)}
    if old_names:
        tensors = {name.replace("encoder.text_model.", "encoder."): tensor for name, tensor in tensors.items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    published = {"query_max_length": 512, "document_max_length": 1024, "encoder_chunk_size": 4} | settings
    (folder / "kalm_cross_encoder_config.json").write_text(json.dumps(published))
    return network


def _randomise(network: torch.nn.Module, seed: int) -> None:
    """Every tensor random, norms too, so that logits are spread."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = 0.2 if parameter.dim() == 1 else 1.0 / parameter.shape[-1] ** 0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
