"""What a checkpoint's small files and the headers of its weights say of it; by these a family is recognised."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lakerank.model.checkpoint import few, read_json, read_modules, read_optional, stored_tensors

#: Names of tensors below a head: of layers, of embeddings, of norms.
_BODY = re.compile(r"(?:^|\.)(?:layers?|blocks)\.\d+\.|embed|norm|LayerNorm|emb_ln|rotary|visual\.|vision")

_SENTENCE_BERT, _SETTINGS = "sentence_bert_config.json", "config_sentence_transformers.json"

#: Files beside config.json, tokenizer and weights that say how a checkpoint is asked and what it answers.
PROMPT_FILES = (
    *("chat_template.jinja", "additional_chat_templates/*.jinja", "modules.json", "*/config.json"),
    *(_SETTINGS, _SENTENCE_BERT, "kalm_cross_encoder_config.json"),
)


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A chat template in Jinja and its variables, in JSON; `structured`: a message's content is a list of parts."""

    source: str
    structured: bool
    variables: str = "{}"


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """What a checkpoint says of itself: config.json, names of its stored tensors and files, and

    `modules`: kinds of the modules that sentence-transformers' modules.json lists, without their packages. `answer`:
    words of LogitScore's tokens, the one that means relevant and the other, if any; None: not stated. `template`: that
    of its prompt. `settings`: config_sentence_transformers.json. `adapter`: adapter_config.json of what is merged.
    """

    config: Mapping[str, Any]
    tensors: frozenset[str] = frozenset()
    files: frozenset[str] = frozenset()
    modules: tuple[str, ...] = ()
    answer: tuple[str | None, str | None] | None = None
    template: ChatTemplate | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    adapter: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model_type(self) -> object:
        """That of config.json."""
        return self.config.get("model_type")

    @property
    def architectures(self) -> tuple[str, ...]:
        """Those of config.json."""
        names = self.config.get("architectures")
        return tuple(map(str, names)) if isinstance(names, list) else ()

    @property
    def heads(self) -> tuple[str, ...]:
        """Modules of stored tensors that are no layers, embeddings or norms."""
        return tuple(sorted({name.rpartition(".")[0] for name in self.tensors if not _BODY.search(name)}))

    def described(self) -> str:
        """The facts in words, for a message."""
        words, reads = self.config.get("classifier_from_token"), self.template and reads_pairs(self.template.source)
        said = (
            f"config.json has model_type {self.model_type!r}, architectures {list(self.architectures)}",
            self.config.get("auto_map") and "its auto_map names code of its own, which is never run",
            words and f"its classifier_from_token is {words!r:.80}",
            f"modules.json lists {', '.join(self.modules)}" if self.modules else "there is no modules.json",
            self.answer and f"its LogitScore reads {self.answer[0]!r} and {self.answer[1]!r}",
            "the chat template reads query and document" if reads else "no chat template knows query and document",
            f"heads of the weights: {few(list(self.heads)) or 'none'}",
        )
        return "; ".join(filter(None, said))


def reads_pairs(source: str) -> bool:
    """Whether a chat template may read messages of the roles `query` and `document`."""
    return "query" in source and "document" in source


def read_facts(folder: Path, config: Mapping[str, Any], adapter: str | None = None) -> CheckpointFacts:
    """The facts of a checkpoint whose config.json is read already.

    Raises CheckpointError: a file is not what its name says, or the weights are damaged.
    """
    modules = read_modules(folder)
    return CheckpointFacts(
        config,
        frozenset(stored_tensors(folder)),
        frozenset(file.name for file in folder.iterdir()),
        tuple(kind.rpartition(".")[2] for kind, _ in modules),
        _answer(folder, modules),
        _template(folder),
        read_optional(folder / _SETTINGS),
        read_optional(Path(adapter) / "adapter_config.json") if adapter else {},
    )


def _answer(folder: Path, modules: list[tuple[str, Path]]) -> tuple[str | None, str | None] | None:
    places = [place for kind, place in modules if kind.endswith(".LogitScore")]
    stated = read_optional(places[0] / "config.json") if places else {}
    if "true_token_id" not in stated:  # or modules.json names another folder, as that of Qwen3-VL-Reranker-8B did
        return None
    tokenizer = read_json(folder / "tokenizer.json")
    words = {number: word for word, number in tokenizer["model"]["vocab"].items()}
    words |= {token["id"]: token["content"] for token in tokenizer.get("added_tokens", ())}
    return words.get(stated["true_token_id"]), words.get(stated.get("false_token_id"))


def _template(folder: Path) -> ChatTemplate | None:
    """The template that sentence-transformers renders pairs with, which the file of its settings may choose by name."""
    tokenizer, settings = (read_optional(folder / name) for name in ("tokenizer_config.json", _SENTENCE_BERT))
    variables = dict((settings.get("processing_kwargs") or {}).get("chat_template") or {})
    stated = tokenizer.get("chat_template") or []
    sources = {"default": stated} if isinstance(stated, str) else {row["name"]: row["template"] for row in stated}
    for file in (*folder.glob("additional_chat_templates/*.jinja"), *folder.glob("chat_template.jinja")):
        sources["default" if file.parent == folder else file.stem] = file.read_text(encoding="utf-8")
    name = variables.pop("chat_template", "default")
    if not (source := sources.get(name, name if "{" in name else "")):
        return None
    marks = ("content[0]", ".type", "'type'", '"type"', "message.content[")  # sentence-transformers looks for these
    default = "structured" if any(mark in source for mark in marks) else "flat"
    form = ((settings.get("modality_config") or {}).get("message") or {}).get("format", default)
    special = {key: value for key, value in tokenizer.items() if key.endswith("_token") and isinstance(value, str)}
    return ChatTemplate(source, form == "structured", json.dumps(special | variables, sort_keys=True))
