"""Configs: complete files, overrides, and every fault at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from lakerank.config import Config, load_config, read_yaml, resolve_config
from lakerank.errors import ConfigError

CONF = Path(__file__).parents[1] / "conf"
DEMO = CONF / "demo.yaml"
RERANK_CONFIGS = sorted(path for path in CONF.glob("*.yaml") if "audit" in read_yaml(path))


def _fields(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel] | None]]:
    """Dotted names of all settings; a section comes with its class, a value with None."""
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield prefix + name, inner
            yield from _fields(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, None


SETTINGS = [name for name, section in _fields(Config) if section is None]


def _names(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and prefix + key != "spark.conf":
            yield from _names(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _get(config: Config, name: str) -> Any:
    value: Any = config.model_dump(mode="json")
    for key in name.split("."):
        value = value[key]
    return value


def _faults(overrides: list[str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(DEMO, overrides)
    return list(caught.value.faults)


@pytest.mark.parametrize("path", RERANK_CONFIGS, ids=lambda path: path.name)
def test_files_in_conf_spell_out_every_setting(path: Path) -> None:
    assert sorted(_names(read_yaml(path))) == sorted(SETTINGS)
    load_config(path)


def test_resolved_config_reads_back_as_itself() -> None:
    config = load_config(DEMO)
    assert resolve_config(yaml.safe_load(config.to_yaml())) == config


@given(st.sampled_from(SETTINGS))
def test_setting_a_value_to_what_it_is_changes_nothing(name: str) -> None:
    config = load_config(DEMO)
    assert load_config(DEMO, [f"{name}={yaml.safe_dump(_get(config, name), default_flow_style=True)}"]) == config


@given(st.integers(1, 10**9))
def test_override_changes_its_setting_and_no_other(value: int) -> None:
    before = load_config(DEMO).model_dump(mode="json")
    after = load_config(DEMO, [f"scoring.unit_tokens={value}"]).model_dump(mode="json")
    assert after["scoring"].pop("unit_tokens") == value
    before["scoring"].pop("unit_tokens")
    assert after == before


@given(st.lists(st.integers(1, 1000), min_size=1))
def test_last_override_wins(depths: list[int]) -> None:
    assert load_config(DEMO, [f"ranking.depth={depth}" for depth in depths]).ranking.depth == depths[-1]


@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Z"]), min_size=1))
def test_text_in_quotes_is_taken_as_it_stands(path: str) -> None:
    quoted = path.replace("'", "''")
    assert load_config(DEMO, [f"lake.documents='{quoted}'"]).lake.documents == path


@given(st.sets(st.text("abcdefghij_", min_size=1).map(lambda name: f"x{name}"), min_size=1))
def test_every_unknown_setting_is_named(names: set[str]) -> None:
    faults = _faults([f"scoring.{name}=1" for name in names])
    assert sorted(faults) == sorted(f"{DEMO}: scoring.{name}: no such setting" for name in names)


def test_all_faults_are_listed_at_once() -> None:
    faults = "\n".join(
        _faults(
            [
                "model.dtype=float64",
                "scoring.max_length=1",
                "ranking.label_thresholds=[0.5, 0.25]",
                "nonsense",
                "lake.x=1",
            ]
        )
    )
    for name in (
        "model.dtype",
        "scoring.max_length",
        "label_thresholds must rise",
        "--set nonsense",
        "lake.x: no such",
    ):
        assert name in faults


def test_fault_says_where_what_and_what_was_found() -> None:
    (fault,) = _faults(["audit.max_reject_rate=2"])
    assert fault.startswith(f"{DEMO}: audit.max_reject_rate: ")
    assert fault.endswith("(found 2)")


@pytest.mark.parametrize("override", ["=1", "scoring", ".x=1", "a..b=1", ""])
def test_malformed_override_is_a_fault(override: str) -> None:
    assert _faults([override]) == [f"--set {override}: expected section.key=value"]


def test_override_below_a_value_is_a_fault() -> None:
    assert _faults(["model.path.x=1"]) == ["--set model.path.x=1: model.path is a value, not a section"]


def test_override_that_is_not_yaml_is_a_fault() -> None:
    (fault,) = _faults(["ranking.depth=[1"])
    assert fault.startswith("--set ranking.depth=[1: the value is not YAML")


def test_limits_that_contradict_each_other_are_a_fault() -> None:
    (fault,) = _faults(["scoring.max_query_length=9000"])
    assert "no room is left for the document" in fault
    (fault,) = _faults(["scoring.min_pixels=700000"])
    assert "is above max_pixels" in fault


def test_missing_sections_are_named(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("model: {}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert set(caught.value.faults) == {f"{path}: lake: missing", f"{path}: model.path: missing"}


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"a: [", "not YAML"), (b"- a\n", "found list"), (b"", "found NoneType"), (b"\xff\xfe\x00", "not YAML")],
)
def test_file_that_is_not_a_mapping_is_a_fault(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_missing_file_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")
