"""A checkpoint's own chat template, rendered once with marks for texts, as constant text around them."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lakerank.errors import CheckpointError
from lakerank.model.facts import ChatTemplate

#: Texts between characters for private use, which no template holds; each kind of letter must come out as it went in.
_MARKS: Mapping[str, str] = {
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
given = json.load(sys.stdin)
environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
environment.globals["raise_exception"] = refuse
template = environment.from_string(given["source"])
texts = []
for messages in given["conversations"]:
    try:
        texts.append(template.render(messages=messages, tools=None, documents=None, **given["variables"]))
    except Exception as error:
        texts.append(None)
json.dump(texts, sys.stdout)
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


def prompt_texts(template: ChatTemplate) -> PromptTexts:
    """What a chat template puts around a query and a document.

    Raises CheckpointError: it fails, or what it makes is no constant text around the whole of both.
    """
    return _prompt_texts(template.source, template.structured, json.dumps(template.variables, sort_keys=True))


@functools.lru_cache(maxsize=16)
def _prompt_texts(source: str, structured: bool, variables: str) -> PromptTexts:
    pair = ("query", "document")
    conversations = [_messages(pair, structured), _messages(("system", *pair), structured)]
    plain, instructed = _rendered(source, conversations, json.loads(variables))
    if plain is None:
        raise CheckpointError("the chat template fails on a query and a document")
    start, middle, end, strips, order = _around(plain, pair)
    if instructed is None or instructed.count(_MARKS["system"]) != 1:
        return PromptTexts(start, middle, end, order[0] == "document", None, strips)
    *parts, _, order_with = _around(instructed, ("system", *pair))
    inside = order_with[0] == "system" and (middle, end) == (parts[2], parts[3])
    return PromptTexts(start, middle, end, order[0] == "document", (parts[0], parts[1]) if inside else None, strips)


def _messages(roles: tuple[str, ...], structured: bool) -> list[dict[str, Any]]:
    texts = {role: f" {_MARKS[role]}\n" for role in roles}
    return [
        {"role": role, "content": [{"type": "text", "text": text}] if structured else text}
        for role, text in texts.items()
    ]


def _around(text: str, roles: tuple[str, ...]) -> tuple[Any, ...]:
    """The constant parts of a rendered prompt, whether texts are stripped in it, and their roles in order."""
    counts = {role: text.count(_MARKS[role]) for role in roles}
    if set(counts.values()) != {1}:
        found = ", ".join(f"{role} {count} times" for role, count in counts.items())
        raise CheckpointError(f"the chat template does not put query and document once each: {found}")
    order = sorted(roles, key=lambda role: text.index(_MARKS[role]))
    strips = not all(f" {_MARKS[role]}\n" in text for role in roles)
    for role in order:
        text = text.replace(_MARKS[role] if strips else f" {_MARKS[role]}\n", "\0")
    return (*text.split("\0"), strips, tuple(order))


def _rendered(source: str, conversations: list[Any], variables: Mapping[str, Any]) -> list[str | None]:
    given = json.dumps({"source": source, "conversations": conversations, "variables": variables})
    try:
        done = subprocess.run(  # noqa: S603 - our own text
            [sys.executable, "-c", _RENDER],
            input=given,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=True,
        )
        texts: list[str | None] = json.loads(done.stdout)
    except (subprocess.SubprocessError, ValueError) as error:
        last = (getattr(error, "stderr", None) or str(error)).strip().rpartition("\n")[2]
        raise CheckpointError(f"the chat template cannot be rendered: {last:.200}") from error
    return texts
