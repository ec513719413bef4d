"""A checkpoint's own chat template, rendered once with marks for texts, as constant text around them."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from lakerank.errors import CheckpointError
from lakerank.model.facts import ChatTemplate

#: Texts between characters for private use, which no template holds; each kind of letter must come out as it went in.
_MARKS = {
    role: f"{sign}Zz9<&'{sign}" for role, sign in (("system", "\ue000"), ("query", "\ue001"), ("document", "\ue002"))
}
_SECONDS = 10

#: The environment that transformers renders chat templates in, in a process of its own: a template may loop for ever.
_RENDER = """
import json, sys
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
def refuse(message):
    raise ValueError(message)
source, conversation, variables = json.load(sys.stdin)
environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
environment.globals["raise_exception"] = refuse
json.dump(environment.from_string(source).render(messages=conversation, **variables), sys.stdout)
"""


@dataclass(frozen=True, slots=True)
class PromptTexts:
    """A whole prompt: `start`, the text of one side, `middle`, that of the other, `end`.

    `instruction`: the text before and after it within `start`, where a system message's text comes to stand there.
    `strips`: white space around texts is left out.
    """

    start: str
    middle: str
    end: str
    document_first: bool
    instruction: tuple[str, str] | None = None
    strips: bool = False


@functools.lru_cache(maxsize=16)
def prompt_texts(template: ChatTemplate) -> PromptTexts:
    """What a chat template puts around a query and a document.

    Raises CheckpointError: it fails, or what it makes is no constant text around the whole of both.
    """
    (start, middle, end), order, strips = _around(template, "query", "document")
    try:
        parts, roles, _ = _around(template, "system", "query", "document")
    except CheckpointError:  # it takes no system message
        parts, roles = [], []
    placed = roles[:1] == ["system"] and parts[2:] == [middle, end]
    return PromptTexts(start, middle, end, order[0] == "document", (parts[0], parts[1]) if placed else None, strips)


def _around(template: ChatTemplate, *roles: str) -> tuple[list[str], list[str], bool]:
    """The constant parts of a prompt with messages of some roles, these in order, and whether texts are stripped."""
    texts = {role: f" {_MARKS[role]}\n" for role in roles}
    text = _rendered(template, texts)
    if {text.count(_MARKS[role]) for role in roles} != {1}:
        raise CheckpointError(f"the chat template does not put a message of {', '.join(roles)} once each")
    order = sorted(roles, key=lambda role: text.index(_MARKS[role]))
    strips = not all(texts[role] in text for role in roles)
    for role in roles:
        text = text.replace(_MARKS[role] if strips else texts[role], "\0")
    return text.split("\0"), order, strips


def _rendered(template: ChatTemplate, texts: dict[str, str]) -> str:
    parts: dict[str, Any] = {role: [{"type": "text", "text": text}] for role, text in texts.items()}
    contents = parts if template.structured else texts
    messages = [{"role": role, "content": content} for role, content in contents.items()]
    try:
        done = subprocess.run(  # noqa: S603 - our own text
            [sys.executable, "-c", _RENDER],
            input=json.dumps([template.source, messages, json.loads(template.variables)]),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=True,
        )
    except subprocess.SubprocessError as error:
        last = (getattr(error, "stderr", None) or str(error)).strip().rpartition("\n")[2]
        raise CheckpointError(f"the chat template cannot be rendered: {last:.200}") from error
    return str(json.loads(done.stdout))
