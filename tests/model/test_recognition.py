"""Which published checkpoints are recognised as what, and which are refused, by what their files say."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from checkpoints.decoders import MODULES, slot
from lakerank.errors import CheckpointError
from lakerank.model.facts import read_facts
from lakerank.model.registry import family_of
from oracles.mxbai import TASK

#: Ids of the tokens that answer in Qwen's vocabularies.
VOCABULARY = {"Yes": 9454, "yes": 9693, "no": 2152, "1": 16, "0": 15, "True": 2514, "False": 4049}

QWEN = ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.norm.weight")
QWEN_VL = (*QWEN, "visual.blocks.0.attn.qkv.weight")
MODERNBERT = ("model.embeddings.tok_embeddings.weight", "model.layers.0.attn.Wqkv.weight", "model.final_norm.weight")

#: As Qwen3's tokenizer_config.json has it, shortened: it knows the roles of a conversation alone.
CHAT = (
    "{%- for message in messages %}{%- if message.role in ('system', 'user', 'assistant') %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
_JUDGE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: '
)
#: tokenizer_config.json of Qwen/Qwen3-Reranker-0.6B since it has modules.json.
QWEN3_RERANKER = (
    '{%- set instruction = messages | selectattr("role", "eq", "system") | map(attribute="content") | first '
    '| default("Given a web search query, retrieve relevant passages that answer the query") -%}\n'
    f"{_JUDGE}{{{{ instruction }}}}\n<Query>: {slot('query')}\n"
    f"<Document>: {slot('document')}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n\n"
)
#: additional_chat_templates/reranker.jinja of Qwen/Qwen3-VL-Reranker-2B, without videos.
QWEN3_VL_RERANKER = (
    "{%- set ns = namespace(instruction='Given a search query, retrieve relevant candidates that answer the query.') %}"
    "{%- macro parts(role) %}{%- for message in messages if message.role == role %}"
    "{%- for content in message.content %}"
    "{%- if content.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- elif 'text' in content %}{{- content.text }}{%- endif %}{%- endfor %}{%- endfor %}{%- endmacro %}"
    "{%- set system = parts('system') %}{%- if system %}{%- set ns.instruction = system %}{%- endif %}"
    f"{{{{- {json.dumps(_JUDGE)} + ns.instruction + '<Query>:' }}}}{{{{- parts('query') }}}}"
    "{{- '\\n<Document>:' }}{{- parts('document') }}{{- '<|im_end|>\\n' }}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
MXBAI = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    f"<|im_start|>user\nquery: {slot('query')}\ndocument: {slot('document')}\n{TASK}"
    "<|im_end|>\n<|im_start|>assistant\n\n"
)
#: chat_template.jinja of zeroentropy/zerank-2: the query is the system's turn.
ZERANK_2 = (
    f"<|im_start|>system\n{slot('query')}<|im_end|>\n<|im_start|>user\n{slot('document')}<|im_end|>\n"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Published:
    """A checkpoint's files, and the family that it is recognised as, or what the refusal says of it (a pattern)."""

    name: str
    outcome: str
    source: str
    config: dict[str, Any]
    tensors: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    answer: dict[str, Any] | None = None
    template: str | None = None
    rendering: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Any] | None = None
    files: dict[str, str] = field(default_factory=dict)


def config(model_type: str, architecture: str, **more: Any) -> dict[str, Any]:
    return {"model_type": model_type, "architectures": [architecture], **more}


LOGIT_SCORE = ("Transformer", "LogitScore")
YES_NO = {"true_token_id": 9693, "false_token_id": 2152}
IDENTITY = "torch.nn.modules.linear.Identity"
MONO_ADAPTER = {
    "base_model_name_or_path": "Qwen/Qwen2-VL-2B-Instruct", "peft_type": "LORA", "task_type": None,
    "modules_to_save": None, "r": 32, "lora_alpha": 32,
}  # fmt: skip
QWEN2_VL_CHAT = config("qwen2_vl", "Qwen2VLForConditionalGeneration")

PUBLISHED = [
    Published(
        "cross-encoder/ms-marco-MiniLM-L6-v2", "bert-reranker",
        "config.json, quoted with its own name in huggingface.co/KennethTM/MiniLM-L6-danish-reranker",
        config("bert", "BertForSequenceClassification", sbert_ce_default_activation_function=IDENTITY,
               id2label={"0": "LABEL_0"}),
        ("bert.embeddings.word_embeddings.weight", "bert.pooler.dense.weight", "classifier.weight", "classifier.bias"),
    ),
    Published(
        "Alibaba-NLP/gte-reranker-modernbert-base", "modernbert-reranker",
        "lablup's mlxcel, docs/embeddings.md: its architecture, head and classifier_pooling",
        config("modernbert", "ModernBertForSequenceClassification", classifier_pooling="mean"),
        (*MODERNBERT, "head.dense.weight", "head.norm.weight", "classifier.weight", "classifier.bias"),
    ),
    Published(
        "cross-encoder/ettin-reranker-17m-v1", "modernbert-reranker",
        "huggingface.co/cross-encoder/ettin-reranker-68m-v1 and -1b-v1, Full Model Architecture",
        config("modernbert", "ModernBertModel"), MODERNBERT,
        ("Transformer", "Pooling", "Dense", "LayerNorm", "Dense"),
        files={"config_sentence_transformers.json": json.dumps({"model_type": "CrossEncoder"})},
    ),
    Published(
        "an embedding model with the same modules", "no known reranker.*Transformer, Pooling, Dense",
        "huggingface.co/sentence-transformers/distiluse-base-multilingual-cased-v2, modules.json",
        config("modernbert", "ModernBertModel"), MODERNBERT, ("Transformer", "Pooling", "Dense"),
    ),
    Published(
        "BAAI/bge-reranker-v2-m3", "bge-reranker",
        "huggingface.co/BAAI/bge-reranker-v2-m3, config.json",
        config("xlm-roberta", "XLMRobertaForSequenceClassification"),
        ("roberta.embeddings.word_embeddings.weight", "classifier.dense.weight", "classifier.out_proj.weight"),
    ),
    Published(
        "jinaai/jina-reranker-v2-base-multilingual", "jina-reranker-v2",
        "huggingface.co/jinaai/jina-reranker-v2-base-multilingual, config.json",
        {"architectures": ["XLMRobertaForSequenceClassification"], "use_flash_attn": True,
         "auto_map": {"AutoConfig": "configuration_xlm_roberta.XLMRobertaFlashConfig"}},
        ("roberta.embeddings.word_embeddings.weight", "classifier.dense.weight", "classifier.out_proj.weight"),
    ),
    Published(
        "jinaai/jina-reranker-m0", "jina-reranker-m0",
        "huggingface.co/jinaai/jina-reranker-m0, config.json and modeling.py",
        config("qwen2_vl", "JinaVLForRanking", auto_map={"AutoModel": "modeling.JinaVLForRanking"}),
        (*QWEN_VL, "score.0.weight", "score.0.bias", "score.2.weight", "score.2.bias"),
    ),
    Published(
        "lightonai/MonoQwen2-VL-v0.1", "monoqwen2-vl",
        "huggingface.co/lightonai/MonoQwen2-VL-v0.1, adapter_config.json at c8db55c",
        QWEN2_VL_CHAT, QWEN_VL, template=CHAT, adapter=MONO_ADAPTER,
    ),
    Published(
        "Qwen/Qwen2-VL-2B-Instruct", r"no known reranker.*Qwen2VLForConditionalGeneration.*monoqwen2-vl, ",
        "huggingface.co/Qwen/Qwen2-VL-2B-Instruct, config.json", QWEN2_VL_CHAT, QWEN_VL, template=CHAT,
    ),
    Published(
        "a chat model's own adapter on it", "no known reranker",
        "huggingface.co/andrewhinh/formless-qwen2-vl-7b-instruct-lora-dpo, adapter_config.json at 5b363a4",
        QWEN2_VL_CHAT, QWEN_VL, template=CHAT, adapter={**MONO_ADAPTER, "task_type": "CAUSAL_LM"},
    ),
    Published(
        "vidore/colqwen2-v1.0-merged", "no known reranker.*'ColQwen2'",
        "huggingface.co/vidore/colqwen2-base, config.json", config("qwen2_vl", "ColQwen2"),
        (*QWEN_VL, "custom_text_proj.weight"),
    ),
    Published(
        "Qwen/Qwen3-Reranker-0.6B", "qwen3-reranker",
        "modules.json and 1_LogitScore at refs/pr/11: sbert.net, Creating Custom Models; its chat template: quoted in "
        "public code that makes rerankers of Qwen3",
        config("qwen3", "Qwen3ForCausalLM"), QWEN, LOGIT_SCORE, YES_NO, QWEN3_RERANKER,
    ),
    Published(
        "Qwen/Qwen3-Reranker-0.6B, converted for vLLM", "qwen3-reranker",
        "docs.vllm.ai, Scoring: hf_overrides of the original model",
        config("qwen3", "Qwen3ForCausalLM", classifier_from_token=["no", "yes"], is_original_qwen3_reranker=True), QWEN,
    ),
    Published(
        "Qwen/Qwen3-Reranker-0.6B, as first published", r"no known reranker.*qwen3-reranker, ",
        "huggingface.co/Qwen/Qwen3-Reranker-0.6B, first revisions: nothing but a chat model's files",
        config("qwen3", "Qwen3ForCausalLM"), QWEN, template=CHAT,
    ),
    Published(
        "Qwen/Qwen3-0.6B", r"no known reranker.*no modules\.json; no chat template knows query",
        "huggingface.co/Qwen/Qwen3-0.6B, config.json and tokenizer_config.json",
        config("qwen3", "Qwen3ForCausalLM"), (*QWEN, "lm_head.weight"), template=CHAT,
    ),
    Published(
        "Qwen/Qwen3-VL-Reranker-2B", "qwen3-vl-reranker",
        "its template, sentence_bert_config.json and 1_LogitScore: described by lablup's mlxcel and "
        "quoted by public code that completes them",
        config("qwen3_vl", "Qwen3VLForConditionalGeneration"), QWEN_VL, LOGIT_SCORE, YES_NO, CHAT,
        {"processing_kwargs": {"chat_template": {"chat_template": "reranker", "add_generation_prompt": True}},
         "modality_config": {"message": {"format": "structured"}}},
        files={"additional_chat_templates/reranker.jinja": QWEN3_VL_RERANKER},
    ),
    Published(
        "Qwen/Qwen3-VL-Reranker-8B", "qwen3-vl-reranker",
        "huggingface.co/Qwen/Qwen3-VL-Reranker-8B/discussions/11: modules.json names a folder that is not there",
        config("qwen3_vl", "Qwen3VLForConditionalGeneration"), QWEN_VL, LOGIT_SCORE, None, CHAT,
        {"processing_kwargs": {"chat_template": {"chat_template": "reranker", "add_generation_prompt": True}},
         "modality_config": {"message": {"format": "structured"}}},
        files={"additional_chat_templates/reranker.jinja": QWEN3_VL_RERANKER},
    ),
    Published(
        "Qwen/Qwen3-VL-2B-Instruct", "no known reranker.*'qwen3_vl'",
        "huggingface.co/Qwen/Qwen3-VL-2B-Instruct", config("qwen3_vl", "Qwen3VLForConditionalGeneration"), QWEN_VL,
        template=CHAT,
    ),
    Published(
        "mixedbread-ai/mxbai-rerank-large-v2", r"no known reranker.*mxbai-rerank-v2, ",
        "config.json, duplicated with its own name in huggingface.co/Compumacy/mxbai; no file but a chat model's",
        config("qwen2", "Qwen2ForCausalLM", use_sliding_window=False), QWEN, template=CHAT,
    ),
    Published(
        "mixedbread-ai/mxbai-rerank-large-v2, in sentence-transformers' layout", "mxbai-rerank-v2",
        "github.com/mixedbread-ai/mxbai-rerank, mxbai_rerank_v2.py: the prompt as a template",
        config("qwen2", "Qwen2ForCausalLM"), QWEN, LOGIT_SCORE, {"true_token_id": 16, "false_token_id": 15}, MXBAI,
    ),
    Published(
        "zeroentropy/zerank-2", "zerank-2",
        "huggingface.co/zeroentropy/zerank-2, commit d3fb332: modules.json, 1_LogitScore, sentence_bert_config.json, "
        "config_sentence_transformers.json; the roles of chat_template.jinja as public code has them",
        config("qwen3", "Qwen3ForCausalLM"), QWEN, LOGIT_SCORE, {"true_token_id": 9454, "false_token_id": None},
        ZERANK_2,
        {"modality_config": {"message": {"format": "flat"}},
         "processing_kwargs": {"chat_template": {"add_generation_prompt": True}}},
        files={"config_sentence_transformers.json": json.dumps(
            {"activation_fn": IDENTITY, "default_prompt_name": None, "model_type": "CrossEncoder", "prompts": {}})},
    ),
    Published(
        "zeroentropy/zerank-2 before May 2026", "no known reranker.*auto_map",
        "huggingface.co/zeroentropy/zerank-2, commit d713204: config.json names modeling_zeranker.py",
        config("qwen3", "Qwen3ForCausalLM", auto_map={"AutoConfig": "modeling_zeranker.ZEConfig"}), QWEN, template=CHAT,
    ),
    Published(
        "ContextualAI/ctxl-rerank-v2-instruct-multilingual-1b", "token-logit",
        "its card's prompt and vocab_id=0, as huggingface.co/sigridjineth/ctxl-rerank-v2-1b-seq-cls quotes them, in "
        "sentence-transformers' layout",
        config("qwen3", "Qwen3ForCausalLM"), QWEN, LOGIT_SCORE, {"true_token_id": 15, "false_token_id": None},
        "Check whether a given document contains information helpful to answer the query.\n"
        f"<Document> {slot('document')}\n<Query> {slot('query')} ??",
    ),
    Published(
        "a Qwen2.5 with a LogitScore and a chat model's template", "no known reranker.*LogitScore reads 'yes' and 'no'",
        "sbert.net, Creating Custom Models: what the library refuses to score",
        config("qwen2", "Qwen2ForCausalLM"), QWEN, LOGIT_SCORE, YES_NO, CHAT,
    ),
    Published(
        "jinaai/jina-reranker-v3", "jina-reranker-v3",
        "huggingface.co/jinaai/jina-reranker-v3, config.json; it ranks whole lists",
        config("qwen3", "JinaForRanking", auto_map={"AutoModel": "modeling.JinaForRanking"}),
        (*QWEN, "projector.0.weight", "projector.2.weight"),
    ),
    Published(
        "KaLM-Embedding/KaLM-Reranker-V1-Small", "kalm-reranker",
        "huggingface.co/KaLM-Embedding/KaLM-Reranker-V1-Small: tagged t5gemma2, with kalm_reranker.py",
        config("t5gemma2", "T5Gemma2ForConditionalGeneration"), ("model.encoder.layers.0.mlp.up_proj.weight",),
        files={"kalm_reranker.py": ""},
    ),
    Published(
        "google/t5gemma-2-270m-270m", "no known reranker.*'t5gemma2'",
        "huggingface.co/google/t5gemma-2-270m-270m, what KaLM's is made of",
        config("t5gemma2", "T5Gemma2ForConditionalGeneration"), ("model.encoder.layers.0.mlp.up_proj.weight",),
    ),
    Published(
        "BAAI/bge-reranker-v2-gemma", "no known reranker.*GemmaForCausalLM",
        "config.json, quoted with its own name in huggingface.co/bespin-global/bge-reranker-v2-gemma-fine-tuning",
        config("gemma", "GemmaForCausalLM"), QWEN,
    ),
    Published(
        "nvidia/llama-nemotron-rerank-1b-v2", "no known reranker.*LlamaBidirectionalForSequenceClassification.*score",
        "docs.nvidia.com/nemo/automodel, llama-nemotron-rerank-1b-v2, and its components' LlamaBidirectionalConfig",
        config("llama_bidirec", "LlamaBidirectionalForSequenceClassification",
               auto_map={"AutoConfig": "llama_bidirectional_model.LlamaBidirectionalConfig"}),
        (*QWEN, "score.weight"),
    ),
    Published(
        "mixedbread-ai/mxbai-rerank-base-v1", "sentence-transformers",
        "huggingface.co/mixedbread-ai/mxbai-rerank-base-v1, config.json",
        config("deberta-v2", "DebertaV2ForSequenceClassification"), ("classifier.weight",),
    ),
    Published(
        "a BERT whose score comes from modules of its own", "sentence-transformers",
        "sbert.net, Creating Custom Models", config("bert", "BertForSequenceClassification"),
        ("classifier.weight",), ("Transformer", "Pooling", "Dense"),
    ),
    Published(
        "a BERT without its head", r"no known reranker.*heads of the weights: pooler\.dense",
        "huggingface.co/google-bert/bert-base-uncased", config("bert", "BertForSequenceClassification"),
        ("embeddings.word_embeddings.weight", "pooler.dense.weight"),
    ),
]  # fmt: skip


def write(folder: Path, published: Published) -> Path | None:
    """The files; returns the adapter's folder."""
    vocabulary = {"model": {"vocab": VOCABULARY}, "added_tokens": []}
    files: dict[str, Any] = {"config.json": published.config, "tokenizer.json": vocabulary, **published.files}
    if published.template is not None:
        files["tokenizer_config.json"] = {"chat_template": published.template}
    if published.modules:
        files["modules.json"] = [
            {"path": f"{number}_{kind}" if number else "", "type": MODULES.get(kind, f"sentence_transformers.{kind}")}
            for number, kind in enumerate(published.modules)
        ]
    if published.answer is not None:
        files["1_LogitScore/config.json"] = published.answer
    if published.rendering:
        files["sentence_bert_config.json"] = published.rendering
    if published.adapter is not None:
        files["adapter/adapter_config.json"] = published.adapter
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    save_file({name: torch.zeros(1) for name in published.tensors}, folder / "model.safetensors")
    return folder / "adapter" if published.adapter is not None else None


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda published: published.name)
def test_a_published_checkpoint(published: Published, tmp_path: Path) -> None:
    adapter = write(tmp_path, published)
    facts = read_facts(tmp_path, published.config, None if adapter is None else str(adapter))
    if " " in published.outcome:
        with pytest.raises(CheckpointError, match=published.outcome):
            family_of(facts, "here")
    else:
        assert family_of(facts, "here").name == published.outcome
