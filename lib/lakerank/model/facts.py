"""What a checkpoint's small files and the headers of its weights say of it; by these a family is recognised."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lakerank.errors import CheckpointError
from lakerank.model.checkpoint import few, read_json, read_modules, stored_tensors

#: Names of tensors below a head: of layers, of embeddings, of norms.
_BODY = re.compile(r"(?:^|\.)(?:layers?|blocks)\.\d+\.|embed|norm|LayerNorm|emb_ln|rotary|visual\.|vision")

_SENTENCE_BERT = "sentence_bert_config.json"

#: Files beside config.json, tokenizer and weights that say how a checkpoint is asked and what it answers.
PROMPT_FILES = (
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "modules.json",
    "*/config.json",
    "config_sentence_transformers.json",
    "kalm_cross_encoder_config.json",
    _SENTENCE_BERT,
)


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A chat template in Jinja; `structured`: a message's content is a list of parts, not a text."""

    source: str
    structured: bool
    variables: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """What a checkpoint says of itself.

    Attributes:
        config: its config.json.
        tensors: names of its stored tensors. files: names of its files.
        modules: kinds of the modules that sentence-transformers' modules.json lists, without their packages.
        answer: words of LogitScore's tokens: the one that means relevant, and the other or None; None: not stated.
        template: the chat template that makes its prompt.
        settings: config_sentence_transformers.json.
        adapter: adapter_config.json of the adapter that is merged into it.
    """

    config: Mapping[str, Any]
    tensors: frozenset[str] = frozenset()
    files: frozenset[str] = frozenset()
    modules: tuple[str, ...] = ()
    answer: tuple[str | None, str | None] | None = None
    template: ChatTemplate | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    adapter: Mapping[str, Any] | None = None

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
        said = [f"config.json has model_type {self.model_type!r}, architectures {list(self.architectures)}"]
        if self.config.get("auto_map"):
            said.append("its auto_map names code of its own, which is never run")
        if words := self.config.get("classifier_from_token"):
            said.append(f"its classifier_from_token is {words!r:.80}")
        said.append(f"modules.json lists {', '.join(self.modules)}" if self.modules else "there is no modules.json")
        if self.answer is not None:
            said.append(f"its LogitScore reads {self.answer[0]!r} and {self.answer[1]!r}")
        reads = "reads query and document" if self.template and reads_pairs(self.template.source) else "knows no query"
        said.append(f"the chat template {reads}" if self.template else "there is no chat template")
        said.append(f"heads of the weights: {few(list(self.heads)) or 'none'}")
        return "; ".join(said)


def reads_pairs(source: str) -> bool:
    """Whether a chat template may read messages of the roles `query` and `document`."""
    return "query" in source and "document" in source


def read_facts(folder: Path, config: Mapping[str, Any], adapter: str | None = None) -> CheckpointFacts:
    """The facts of a checkpoint whose config.json is read already.

    Raises CheckpointError: a file is not what its name says, or the weights are damaged.
    """
    modules = read_modules(folder)
    adapter_config = Path(adapter) / "adapter_config.json" if adapter else None
    return CheckpointFacts(
        config,
        frozenset(stored_tensors(folder)),
        frozenset(file.name for file in folder.iterdir()),
        tuple(kind.rpartition(".")[2] for kind, _ in modules),
        _answer(folder, modules),
        _template(folder),
        _optional(folder / "config_sentence_transformers.json"),
        _optional(adapter_config) if adapter_config else None,
    )


def _optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _answer(folder: Path, modules: list[tuple[str, Path]]) -> tuple[str | None, str | None] | None:
    places = [place for kind, place in modules if kind.endswith(".LogitScore")]
    stated = _optional(places[0] / "config.json") if places else {}
    if "true_token_id" not in stated:  # or modules.json names another folder, as that of Qwen3-VL-Reranker-8B did
        return None
    tokenizer = read_json(folder / "tokenizer.json")
    vocabulary = tokenizer.get("model", {}).get("vocab", {})
    pairs = vocabulary.items() if isinstance(vocabulary, dict) else ((row[0], at) for at, row in enumerate(vocabulary))
    words = {number: word for word, number in pairs}
    words |= {token["id"]: token["content"] for token in tokenizer.get("added_tokens", ())}
    true, false = (words.get(stated.get(f"{side}_token_id")) for side in ("true", "false"))
    return true, false


def _template(folder: Path) -> ChatTemplate | None:
    """The template that sentence-transformers renders pairs with, which the file of its settings may choose by name."""
    sentence_bert = _optional(folder / _SENTENCE_BERT)
    variables = dict((sentence_bert.get("processing_kwargs") or {}).get("chat_template") or {})
    name = variables.pop("chat_template", "default")
    tokenizer = _optional(folder / "tokenizer_config.json")
    stated = tokenizer.get("chat_template")
    sources = {"default": stated} if isinstance(stated, str) else {row["name"]: row["template"] for row in stated or ()}
    sources |= {file.stem: _text(file) for file in folder.glob("additional_chat_templates/*.jinja")}
    if (file := folder / "chat_template.jinja").is_file():
        sources["default"] = _text(file)
    if not (source := sources.get(name, name if "{" in str(name) else None)):
        return None
    message = (sentence_bert.get("modality_config") or {}).get("message") or {}
    marks = ("content[0]", ".type", "'type'", '"type"', "message.content[")  # sentence-transformers looks for these
    structured = message.get("format", "structured" if any(mark in source for mark in marks) else "flat")
    special = {key: value for key, value in tokenizer.items() if key.endswith("_token") and isinstance(value, str)}
    return ChatTemplate(str(source), structured == "structured", special | variables)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file}: cannot be read as a text: {error}") from error
