"""Settings by name: reading YAML, `--set`, and the faults of values in words that name a setting and what to do.

A value in YAML is text, a number, true, false, null, a list or a mapping: `on` and dates are text, `010` and `1:30` no
numbers. A value of `--set` is taken whole, whatever YAML would make of its `#`, `:`, `*` or `[`, or it is refused.
"""

from __future__ import annotations

import difflib
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from lakerank.credentials import redacted, settings_without
from lakerank.errors import ConfigError

#: Characters of a wrong value that a message shows.
_SHOWN = 80


class Section(BaseModel):
    """A section of a config: immutable, and a key that it does not have is a fault."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def contradictions(self) -> list[str]:
        """What cannot go together, although each value alone could be."""
        return []


Schema = TypeVar("Schema", bound=Section)


class _Loader(yaml.SafeLoader):
    """YAML without its surprises: see the module."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F_]+", "-+0123456789"),
    ("float", r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|INF)|\.(?:nan|NAN)",
     "-+0123456789."),
    ("merge", "<<", "<"),
):  # fmt: skip
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def load_yaml(text: str) -> Any:
    """A YAML value. Raises yaml.YAMLError."""
    return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping, refusing anything else.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        content = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(
            [f"{path}: cannot be read ({error.strerror}); conf/reference.yaml has every setting"]
        ) from error
    return parse_settings(content, str(path))


def parse_settings(content: bytes, source: str) -> dict[str, Any]:
    """The YAML mapping that a config file holds, refusing anything else.

    Raises:
        ConfigError: it is not YAML, or not a mapping.
    """
    try:
        loaded = load_yaml(content.decode())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"{source}: not YAML: {_where(error)}"]) from None  # YAML's own words quote the line
    if not isinstance(loaded, dict):
        raise ConfigError([f"{source}: expected sections such as 'lake:' and 'model:', found {type(loaded).__name__}"])
    return loaded


def apply_override(schema: type[Section], values: dict[str, Any], override: str) -> str | None:
    """Set one `section.key=value` in place; returns the fault if it cannot be.

    A mapping of plain values, such as `spark.conf`, has dotted keys: `spark.conf.spark.master=local[2]`.
    """
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        return f"--set {override}: expected section.key=value"
    options, keys = _resolve(schema, keys)
    try:
        value = _parse(options, text.strip())
    except ValueError as error:
        return f"--set {'.'.join(keys)}: {error}"
    node: Any = values
    for depth, key in enumerate(keys[:-1], start=1):
        try:
            child = node[int(key)] if isinstance(node, list) else node.get(key)
        except (ValueError, IndexError):
            return f"--set {override}: {'.'.join(keys[: depth - 1])} is a list of {len(node)}, without {key!r}"
        if child is None and isinstance(node, dict):
            child = node[key] = {}
        if not isinstance(child, dict | list):
            return f"--set {override}: {'.'.join(keys[:depth])} is a value, not a section"
        node = child
    if isinstance(node, list):
        return f"--set {override}: {'.'.join(keys[:-1])} is a list; name an element's setting, as in {keys[0]}.0.path"
    node[keys[-1]] = value
    return None


def validate(
    schema: type[Schema], values: Mapping[str, Any], faults: Sequence[str], source: str, overrides: Sequence[str] = ()
) -> Schema:
    """A config of complete values. A fault of a value that `--set` gave is said of `--set`, others of the source.

    Addresses are without their credentials, which this process remembers.

    Raises:
        ConfigError: the given faults, those of the values, and contradictions, all at once.
    """
    try:
        config = schema.model_validate(settings_without(values))
        contradictions = [f"{source}: {fault}" for fault in config.contradictions()]
    except ValidationError as error:
        given = [override.partition("=")[0].strip() for override in overrides]
        contradictions = list(dict.fromkeys(_describe(schema, fault, source, given) for fault in error.errors()))
    contradictions += [f"{source}: {fault}" for fault in _switches(schema, values)]
    if faults or contradictions:
        raise ConfigError([*faults, *contradictions])
    return config


def _switches(schema: type[Section], value: Any, *keys: str) -> Iterator[str]:
    """Settings that are true or false where there should be a number: Python takes true for 1."""
    if isinstance(value, bool):
        kinds = {*_resolve(schema, [*keys])[0]}
        if kinds & {int, float} and bool not in kinds:
            yield f"{'.'.join(keys)}: expected a number (found {json.dumps(value)})"
    elif isinstance(value, Mapping | list):
        for key, part in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _switches(schema, part, *keys, str(key))


def _parse(options: Sequence[Any], text: str) -> Any:
    """The value of a setting that may have one of some types. Raises ValueError."""
    if not text:
        raise ValueError("no value; say null for none, '' for an empty text")
    if text == "null":
        return None
    plain = bool(options) and all(_is_plain(option) for option in options)
    if plain and text[0] not in "'\"":
        return text
    try:
        value = load_yaml(text)
        tokens = list(yaml.scan(text))
    except yaml.YAMLError as error:
        raise ValueError(f"the value is not YAML: {_where(error)}") from None
    ends = [(before.end_mark.index, after.start_mark.index) for before, after in pairwise(tokens)]
    if any("#" in text[start:end] for start, end in ends):
        raise ValueError("YAML drops what follows '#' as a comment; put the text in quotes")
    if plain and not isinstance(value, str):
        raise ValueError("something follows the quoted text")
    return value


def _where(error: Exception) -> str:
    """What is wrong with YAML, and where; not the text itself, which may hold a password."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return redacted(str(error))
    mark = error.problem_mark
    return f"{error.problem}, line {mark.line + 1}, column {mark.column + 1}"


def _is_plain(option: Any) -> bool:
    """Whether a type's values are single words: text, a number, true or false, null."""
    return option in (str, int, float, bool, type(None)) or typing.get_origin(option) is typing.Literal


def _options(annotation: Any) -> Iterator[Any]:
    """The types of a union, whatever it is wrapped in."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from _options(typing.get_args(annotation)[0])
    elif origin in (typing.Union, types.UnionType):
        for option in typing.get_args(annotation):
            yield from _options(option)
    else:
        yield annotation


def _fields(option: Any) -> dict[str, Any]:
    """The settings of a section and their types; none of a plain value's type."""
    if isinstance(option, type) and issubclass(option, BaseModel):
        return {name: field.annotation for name, field in option.model_fields.items()}
    return typing.get_type_hints(option) if is_dataclass(option) else {}


def _inner(option: Any, key: str) -> list[Any]:
    """The types of what is under a key."""
    if typing.get_origin(option) is tuple:
        return list(_options(typing.get_args(option)[0])) if key.isdigit() else []
    if typing.get_origin(option) is dict:
        return list(_options(typing.get_args(option)[1]))
    return list(_options(fields[key])) if key in (fields := _fields(option)) else []


def _resolve(schema: type[Section], keys: list[str]) -> tuple[list[Any], list[str]]:
    """The types that a setting may have (none: no such setting), and its keys, dotted ones of a mapping joined."""
    options: list[Any] = [schema]
    for depth, key in enumerate(keys):
        below = [inner for option in options for inner in _inner(option, key)]
        if any(typing.get_origin(option) is dict for option in options) and all(map(_is_plain, below)):
            return below, [*keys[:depth], ".".join(keys[depth:])]
        options = below
    return options, keys


def _names(schema: Any, prefix: str = "") -> Iterator[str]:
    """Every setting, dotted."""
    for name, annotation in _fields(schema).items():
        yield prefix + name
        for option in _options(annotation):
            yield from _names(option, f"{prefix}{name}.")


def _suggestion(schema: type[Section], where: str) -> str:
    """The setting that was probably meant, as the end of a message."""
    keys = where.split(".")
    siblings = [name for option in _resolve(schema, keys[:-1])[0] for name in _fields(option)]
    if close := difflib.get_close_matches(keys[-1], siblings, 1):
        return f"; did you mean {close[0]}?"
    elsewhere = {name.rpartition(".")[2]: name for name in reversed(list(_names(schema)))}
    if close := difflib.get_close_matches(keys[-1], elsewhere, 1, 0.8):
        return f"; did you mean {elsewhere[close[0]]}?"
    if keys[0] == "spark":
        return f"; did you mean spark.conf.{where}?"
    return "; conf/reference.yaml has them all"


#: What pydantic's types are called here, by how its faults' names begin.
_KINDS = {
    "string": "text", "bool": "true or false", "int": "a whole number", "float": "a number",
    **dict.fromkeys(("tuple", "list"), "a list, such as [0.5]"),
    **dict.fromkeys(("dict", "model", "dataclass"), "settings, such as {name: value}"),
}  # fmt: skip


def _describe(schema: type[Section], fault: Any, source: str, given: Sequence[str]) -> str:
    """One of pydantic's faults in a line: where the value stands, the setting, the fault and the value."""
    where = ".".join(str(part) for part in fault["loc"] if not str(part).startswith("<"))
    names = [name for name in given if f"{where}.".startswith(f"{name}.") or f"{name}.".startswith(f"{where}.")]
    typed = bool(names) and fault["type"] != "missing"
    if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        message = f"no such setting{_suggestion(schema, where)}"
    elif fault["type"] in ("value_error", "missing"):
        message = "missing" if fault["type"] == "missing" else fault["msg"].removeprefix("Value error, ")
    else:
        kind, value = _KINDS.get(fault["type"].partition("_")[0]), fault["input"]
        found = value if typed and isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        words = (
            f"expected {kind}"
            if kind
            else fault["msg"].replace("Input should be '", "expected '").replace("Input should", "must")
        )
        message = f"{words} (found {found if len(found) <= _SHOWN else f'{found[:_SHOWN]}…'})"
    if not typed:
        return f"{source}: {where}: {message}"
    return f"--set {where if where.startswith(names[-1]) else names[-1]}: {message}"
