"""Random cross-encoders as they are published, made with transformers and tokenizers alone."""

from __future__ import annotations

import json
import shutil
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

WORDS = (  # noqa: SIM905 - two lines, not forty
    "the of and to in red apple apples table tables lies on a green bird sings water river train bridge school history "
    "kernel memory disk letter report price how much does it cost where is Der rote Apfel liegt auf dem Tisch"
).split()
_LETTERS = string.ascii_letters + string.digits + ".,:;!?'-()яблокоКрасн赤いりんごתפוחتفاحةéüß€"


def write_tokenizer(folder: Path, words: Sequence[str] = WORDS) -> Tokenizer:
    """XLM-RoBERTa's kind: pieces of a Unigram model after Metaspace, ids 0 to 3 and the last one special."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [*dict.fromkeys(_LETTERS), "▁", *dict.fromkeys(f"▁{word}" for word in words)]
    vocabulary = [(token, 0.0) for token in special]
    vocabulary += [(piece, -2.0 - 0.01 * number - (4 if len(piece) < 2 else 0)) for number, piece in enumerate(pieces)]
    vocabulary += [("<mask>", 0.0)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" {2,}", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in [*special, "<mask>"]])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.enable_truncation(32)  # as some published files state; nobody is to take it over
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
    stated = {f"{name}_token": token for name, token in names.items()}
    stated |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))
    return tokenizer


def network(positions: int, vocabulary: int, seed: int = 0, **sizes: int) -> XLMRobertaForSequenceClassification:
    """A network whose logits are spread; `sizes` in transformers' words."""
    defaults = {
        "vocab_size": vocabulary, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 160,
    }  # fmt: skip
    config = XLMRobertaConfig(
        max_position_embeddings=positions, type_vocab_size=1, num_labels=1, pad_token_id=1, bos_token_id=0,
        eos_token_id=2, layer_norm_eps=1e-5, **(defaults | sizes),
    )  # fmt: skip
    encoder = XLMRobertaForSequenceClassification(config).eval()
    randomise(encoder, seed)
    return encoder


def randomise(encoder: torch.nn.Module, seed: int) -> None:
    """Every tensor random, norms and biases too, so that logits are spread."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            around = 1.0 if name.endswith(("norm.weight", "LayerNorm.weight")) else 0.0
            scale = 0.2 if parameter.dim() == 1 else 1.5 / parameter.shape[-1] ** 0.5
            parameter.copy_(around + scale * torch.randn(parameter.shape, generator=generator))


def write_bge(
    folder: Path,
    positions: int = 258,
    seed: int = 0,
    words: Sequence[str] = WORDS,
    dtype: str = "float32",
    **sizes: int,
) -> XLMRobertaForSequenceClassification:
    """bge-reranker-v2-m3's layout; returns the network whose weights it holds."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder = network(positions, write_tokenizer(folder, words).get_vocab_size(), seed, **sizes)
    tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in encoder.state_dict().items()}
    tensors["roberta.embeddings.position_ids"] = torch.arange(positions)[None]  # a buffer that old files hold
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = _config(encoder) | {"model_type": "xlm-roberta", "torch_dtype": dtype}
    (folder / "config.json").write_text(json.dumps(config))
    return encoder


def write_jina(
    folder: Path,
    positions: int = 130,
    seed: int = 1,
    words: Sequence[str] = WORDS,
    dtype: str = "float32",
    **sizes: int,
) -> XLMRobertaForSequenceClassification:
    """jina-reranker-v2's layout; returns a network of transformers' with the same weights."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder = network(positions, write_tokenizer(folder, words).get_vocab_size(), seed, **sizes)
    tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in encoder.state_dict().items()}
    save_file(jina_named(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    config = _config(encoder) | {
        "auto_map": {"AutoConfig": "configuration_xlm_roberta.XLMRobertaFlashConfig"},
        "num_labels": 1,
        "use_flash_attn": True,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return encoder


def write_wordpiece(folder: Path, words: Sequence[str] = WORDS) -> Tokenizer:
    """BERT's kind: WordPiece of lower-case words, pieces and letters, special tokens first."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = list(dict.fromkeys(_LETTERS.lower()))
    pieces = [
        *special,
        *letters,
        *(f"##{letter}" for letter in letters),
        *dict.fromkeys(word.lower() for word in words),
    ]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(32)
    tokenizer.enable_padding(length=32)  # as published files state
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "pad": "[PAD]", "mask": "[MASK]"}
    stated = {f"{name}_token": token for name, token in names.items()} | {"tokenizer_class": "BertTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))
    return tokenizer


def write_bert(
    folder: Path,
    positions: int = 256,
    seed: int = 2,
    words: Sequence[str] = WORDS,
    dtype: str = "float32",
    **sizes: int,
) -> BertForSequenceClassification:
    """ms-marco-MiniLM's layout; returns the network whose weights it holds."""
    folder.mkdir(parents=True, exist_ok=True)
    defaults = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 160}
    defaults["vocab_size"] = write_wordpiece(folder, words).get_vocab_size()
    config = BertConfig(max_position_embeddings=positions, num_labels=1, **(defaults | sizes))
    encoder = BertForSequenceClassification(config).eval()
    randomise(encoder, seed)
    tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in encoder.state_dict().items()}
    tensors |= {"bert.embeddings.position_ids": torch.arange(positions)[None]}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    stated = _config(encoder) | {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity",
    }
    (folder / "config.json").write_text(json.dumps(stated))
    return encoder


def write_bytepair(folder: Path, words: Sequence[str] = WORDS) -> Tokenizer:
    """ModernBERT's kind: byte-level BPE, special tokens last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([" ".join(words)] * 4, trainer)
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ids
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "pad": "[PAD]", "mask": "[MASK]"}
    stated: dict[str, Any] = {f"{name}_token": token for name, token in names.items()}
    stated |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))
    return tokenizer


_MODERN_TOKENS = {"pad": "pad", "cls": "cls", "bos": "cls", "sep": "sep", "eos": "sep"}


def write_modern(
    folder: Path,
    positions: int = 512,
    seed: int = 3,
    words: Sequence[str] = WORDS,
    dtype: str = "float32",
    **sizes: Any,
) -> ModernBertForSequenceClassification:
    """gte-reranker-modernbert-base's layout, with the keys of its config.json; returns the network."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = write_bytepair(folder, words)
    defaults = {
        "vocab_size": tokenizer.get_vocab_size(), "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2,
        "intermediate_size": 96, "local_attention": 32, "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0,
        "local_rope_theta": 10000.0, "classifier_pooling": "mean", "norm_eps": 1e-5, "num_labels": 1,
        "max_position_embeddings": positions,
        **{f"{name}_token_id": tokenizer.token_to_id(f"[{token.upper()}]") for name, token in _MODERN_TOKENS.items()},
    }  # fmt: skip
    stated = defaults | sizes
    encoder = ModernBertForSequenceClassification(ModernBertConfig(**stated)).eval()
    randomise(encoder, seed)
    tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in encoder.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    stated |= {
        "architectures": ["ModernBertForSequenceClassification"], "model_type": "modernbert", "torch_dtype": dtype,
        "hidden_activation": "gelu", "classifier_activation": "gelu", "layer_norm_eps": 1e-5,
        "position_embedding_type": "absolute", "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(stated))
    return encoder


def write_modules(
    folder: Path, source: Path, pooling: str = "cls", activation: Any = torch.nn.GELU, seed: int = 4
) -> Any:
    """Ettin's layout, with the network of a checkpoint in `source`, as sentence-transformers writes it; its model."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling

    h = json.loads((source / "config.json").read_text())["hidden_size"]
    score = Dense(h // 2, 1, activation_function=torch.nn.Identity(), module_output_name="scores")
    dense = Dense(h, h // 2, bias=False, activation_function=activation())
    parts = [Transformer(str(source)), Pooling(h, pooling), dense, LayerNorm(h // 2), score]
    model = CrossEncoder(modules=parts, device="cpu")
    randomise(model, seed)
    model.save_pretrained(str(folder), create_model_card=False)
    return model


def jina_named(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' tensors under jina's names, query, key and value in one."""
    named = {}
    for name, tensor in state.items():
        new = name.replace("embeddings.LayerNorm", "emb_ln").replace("encoder.layer.", "encoder.layers.")
        new = new.replace("attention.output.dense", "mixer.out_proj").replace("attention.output.LayerNorm", "norm1")
        new = new.replace("intermediate.dense", "mlp.fc1").replace("output.dense", "mlp.fc2")
        new = new.replace("output.LayerNorm", "norm2")
        if ".attention.self." not in new:
            named[new] = tensor.contiguous()
        elif ".self.query." in new:
            parts = [state[name.replace("query", part)] for part in ("query", "key", "value")]
            named[new.replace("attention.self.query", "mixer.Wqkv")] = torch.cat(parts)
    return named


def _config(encoder: XLMRobertaForSequenceClassification | BertForSequenceClassification) -> dict[str, Any]:
    """What all published config.json files state."""
    stated = (  # noqa: SIM905 - two lines, not thirteen
        "hidden_act hidden_size intermediate_size layer_norm_eps max_position_embeddings num_attention_heads "
        "num_hidden_layers pad_token_id bos_token_id eos_token_id type_vocab_size vocab_size hidden_dropout_prob"
    ).split()
    config = {name: getattr(encoder.config, name) for name in stated}
    config |= {"architectures": ["XLMRobertaForSequenceClassification"], "position_embedding_type": "absolute"}
    return config | {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}


def write_ettin(folder: Path, write: Callable[[Path], Any] = write_modern, pooling: str = "cls") -> None:
    """A network in Ettin's layout, and nothing else in its folder."""
    write(folder / "source")
    write_modules(folder, folder / "source", pooling)
    shutil.rmtree(folder / "source")
