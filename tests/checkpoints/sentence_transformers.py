"""Random rerankers in the layouts that sentence-transformers writes, made with that library and transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from checkpoints.encoders import WORDS, randomise, write_wordpiece

#: Renders pairs as the published templates do, flat contents and lists of parts.
TEMPLATE = """{%- macro show(message) %}{% if message.content is string %}{{ message.content }}{% else %}
{%- for part in message.content %}{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}
{%- endif %}{% endmacro -%}
{%- for message in messages %}{{ message.role }} : {{ show(message) }} {% endfor %}answer ?"""

_WORDS = ("yes", "no", "query", "document", "answer", "system", "judge")


def write_ettin(folder: Path, positions: int = 128) -> None:
    """Ettin's layout: ModernBERT, then Pooling, Dense, LayerNorm and Dense, with a sigmoid."""
    vocabulary = _write_tokenizer(folder, model_max_length=positions)
    config = ModernBertConfig(
        vocab_size=vocabulary, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=positions, pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2,
        sep_token_id=3, local_attention=16,
    )  # fmt: skip
    _save(ModernBertModel(config), folder, 3)
    head = [
        Pooling(48, "cls"),
        Dense(48, 48, activation_function=torch.nn.GELU()),
        LayerNorm(48),
        Dense(48, 1, activation_function=torch.nn.Identity(), module_output_name="scores"),
    ]
    for number, module in enumerate(head):
        randomise(module, 4 + number)
    CrossEncoder(modules=[Transformer(str(folder)), *head], device="cpu").save_pretrained(str(folder))


def write_classifier(folder: Path, kind: str) -> None:
    """A plain classifier of a kind that no narrower family computes: `deberta` or `albert`."""
    sizes = {
        "vocab_size": _write_tokenizer(folder, model_max_length=64), "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64, "num_labels": 1,
    }  # fmt: skip
    if kind == "albert":
        _save(AlbertForSequenceClassification(AlbertConfig(**sizes, embedding_size=16, pad_token_id=0)), folder, 5)
    else:
        config = DebertaV2Config(**sizes, relative_attention=True, pos_att_type=["p2c", "c2p"], type_vocab_size=0)
        _save(DebertaV2ForSequenceClassification(config), folder, 6)


def write_logit_score(folder: Path, **settings: Any) -> None:
    """zerank's and Qwen3-Reranker's layout: a language model, a chat template, prompts and the words of its answer."""
    vocabulary = _write_tokenizer(folder, chat_template=TEMPLATE, model_max_length=96)
    text = _text_config(vocabulary)
    _save(Qwen3ForCausalLM(Qwen3Config(**text, head_dim=16, tie_word_embeddings=True)), folder, 8)
    _save_with_answer(folder, "text-generation", settings)


def write_llava(folder: Path, **settings: Any) -> None:
    """A model of images and texts in the same layout."""
    vocabulary = _write_tokenizer(folder, more=["<image>"], chat_template=TEMPLATE, model_max_length=256)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2, image_size=56, patch_size=14,
        projection_dim=32,
    )  # fmt: skip
    text = LlamaConfig(**_text_config(vocabulary))
    network = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_id=vocabulary - 1)
    )
    _save(network, folder, 9)
    images = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    LlavaProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    ).save_pretrained(str(folder))  # fmt: skip
    _save_with_answer(folder, "any-to-any", settings)


def _text_config(vocabulary: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
    }  # fmt: skip


def _write_tokenizer(folder: Path, more: list[str] | None = None, **stated: Any) -> int:
    """BERT's kind, with the words of prompts; returns the size of its vocabulary, whose last tokens are `more`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = write_wordpiece(folder, [*WORDS, *_WORDS])
    tokenizer.add_special_tokens(more or [])
    tokenizer.no_truncation()  # a processor would take both over from the file
    tokenizer.no_padding()
    tokenizer.save(str(folder / "tokenizer.json"))
    file = folder / "tokenizer_config.json"
    values = json.loads(file.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"} | stated
    file.write_text(json.dumps(values))
    return int(tokenizer.get_vocab_size())


def _save(network: Any, folder: Path, seed: int) -> None:
    randomise(network, seed)
    if (head := getattr(network, "lm_head", None)) is not None and not network.config.tie_word_embeddings:
        head.weight.data *= 0.2  # logits of about 1
    network.eval().save_pretrained(str(folder))


def _save_with_answer(folder: Path, task: str, settings: dict[str, Any]) -> None:
    transformer = Transformer(str(folder), transformer_task=task)
    words = transformer.tokenizer.convert_tokens_to_ids(["yes", "no"])
    CrossEncoder(modules=[transformer, LogitScore(*words)], device="cpu").save_pretrained(str(folder))
    file = folder / "config_sentence_transformers.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
