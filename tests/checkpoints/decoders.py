"""What language models that rerank have beside their weights, in the layout that sentence-transformers writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lakerank.model.checkpoint import read_json
from lakerank.model.generative.config import ChatPrompt

MODULES = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "LogitScore": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore",
}


def slot(role: str) -> str:
    """The text of a message in Jinja."""
    return f'{{{{ messages | selectattr("role", "eq", "{role}") | map(attribute="content") | first }}}}'


def write_prompt(folder: Path, prompt: ChatPrompt) -> None:
    """Say in a checkpoint's own files what a family asks and answers."""
    parts = [(prompt.document, "document"), (prompt.query, "query")]
    ordered = parts if prompt.document_first else parts[::-1]
    sides = [f"{side.before}{side.prefix}{slot(role)}{side.suffix}{side.after}" for side, role in ordered]
    write_layout(folder, (prompt.yes, prompt.no), prompt.head + "".join(sides))


def write_layout(folder: Path, answer: tuple[str, str | None], template: str, **settings: Any) -> None:
    """modules.json, a LogitScore of two words or one, a chat template, and how it is rendered."""
    vocabulary = read_json(folder / "tokenizer.json")["model"]["vocab"]
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": MODULES[kind]}
        for number, (kind, path) in enumerate((("Transformer", ""), ("LogitScore", "1_LogitScore")))
    ]
    (folder / "1_LogitScore").mkdir(exist_ok=True)
    tokens = {f"{side}_token_id": vocabulary.get(word) for side, word in zip(("true", "false"), answer, strict=True)}
    call = {"method": "forward", "method_output_name": "logits"}
    rendered = {
        "transformer_task": "text-generation",
        "modality_config": {"text": call, "message": {**call, "format": "flat"}},
        "module_output_name": "causal_logits",
        **settings,
    }
    activation: dict[str, Any] = {
        "activation_fn": "torch.nn.modules.linear.Identity",
        "prompts": {},
        "default_prompt_name": None,
    }
    for name, content in {
        "modules.json": listed,
        "1_LogitScore/config.json": tokens,
        "sentence_bert_config.json": rendered,
        "config_sentence_transformers.json": activation | {"model_type": "CrossEncoder", "prompts": {}},
    }.items():
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
    # Jinja leaves a newline at the end out
    (folder / "chat_template.jinja").write_text(f"{template}\n", encoding="utf-8")
