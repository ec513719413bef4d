"""Configs: complete files, overrides, and every fault at once."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from lakerank.config import (
    CascadeStageConfig,
    Config,
    EnsembleConfig,
    LakeConfig,
    ModelConfig,
    RoutedConfig,
    bundled_config,
    load_config,
    resolve_config,
)
from lakerank.errors import ConfigError
from lakerank.plan.conflicts import changed_settings
from lakerank.settings import read_yaml

CONF = Path(__file__).parents[1] / "conf"
DEMO = CONF / "demo.yaml"
REFERENCE = CONF / "reference.yaml"
RERANK_CONFIGS = sorted(path for path in CONF.glob("*.yaml") if "audit" in read_yaml(path) and path != REFERENCE)


def _fields(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type | None]]:
    """Dotted names of all settings; a section comes with its class, a value with None."""
    for name, field in section.model_fields.items():
        inner = ModelConfig if (section, name) == (Config, "model") else field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield prefix + name, inner
            yield from _fields(inner, f"{prefix}{name}.")
        elif isinstance(inner, type) and is_dataclass(inner):
            yield prefix + name, inner
            yield from ((f"{prefix}{name}.{setting.name}", None) for setting in fields(inner))
        else:
            yield prefix + name, None


#: How yaml.safe_dump ends a value that stands alone.
END = "\n...\n"
EVERYWHERE = "conf/reference.yaml has them all"

SETTINGS = [name for name, section in _fields(Config) if section is None]


def _names(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value and prefix + key != "spark.conf":
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


def test_the_reference_documents_every_setting_with_its_default() -> None:
    assert sorted(_names(read_yaml(REFERENCE))) == sorted(SETTINGS)
    assert load_config(REFERENCE) == resolve_config({})
    lines = REFERENCE.read_text(encoding="utf-8").splitlines()
    named = {line.split(":")[0].strip() for line in lines}
    assert {name.rpartition(".")[2] for name in SETTINGS} <= named


@pytest.mark.parametrize("path", RERANK_CONFIGS, ids=lambda path: path.name)
def test_files_in_conf_differ_under_model_alone(path: Path) -> None:
    config, demo = load_config(path), load_config(DEMO)
    assert config.model_copy(update={"model": demo.model}) == demo
    assert path == DEMO or config.model != demo.model
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 12


def test_files_in_conf_name_models_of_every_shape() -> None:
    shapes = [type(load_config(path).model) for path in RERANK_CONFIGS]
    assert set(shapes) == {ModelConfig, RoutedConfig, tuple, EnsembleConfig}


FIVE_LINES = """\
lake:
  documents: mine/documents
  queries: mine/queries
  candidates: mine/candidates
  output: mine/out
"""


def test_tables_and_an_output_are_a_whole_config(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(FIVE_LINES)
    config = load_config(path)
    assert config.lake == LakeConfig(
        documents="mine/documents", queries="mine/queries", candidates="mine/candidates", output="mine/out"
    )
    assert config.lake.qrels is None
    assert config.lake.located() == config.lake
    everything = resolve_config({})
    assert config.model_copy(update={"lake": everything.lake}) == everything


def test_a_config_without_a_lake_reads_the_bundled_one() -> None:
    lake = load_config(DEMO, ["lake.candidates=mine.parquet"]).lake
    located = lake.located()
    assert (lake.documents, lake.candidates, located.candidates) == ("embedded", "mine.parquet", "mine.parquet")
    for table in (located.documents, located.queries, located.qrels):
        assert Path(str(table)).is_file()
    assert (located.output, located.storage) == (lake.output, lake.storage)


@pytest.mark.parametrize("path", RERANK_CONFIGS, ids=lambda path: path.name)
def test_a_config_that_spells_out_every_setting_means_the_same(path: Path, tmp_path: Path) -> None:
    """As the configs of earlier versions do, and those in `runs/`."""
    config = load_config(path)
    complete = tmp_path / "complete.yaml"
    complete.write_text(config.to_yaml())
    assert set(_names(read_yaml(complete))) >= {name for name in SETTINGS if not name.startswith("model.")}
    assert repr(load_config(complete)) == repr(config), "also of the same types, which are part of fingerprints"


def test_settings_left_out_have_defaults_for_production_not_for_the_demo() -> None:
    config = resolve_config({})
    assert (config.audit.max_reject_rate, config.audit.max_unranked_queries) == (0.01, 0.01)
    assert (config.audit.max_score_drift, config.audit.max_ndcg_drop) == (0.25, 0.01)
    assert (config.scoring.unit_tokens, config.spark.app_name, config.spark.conf) == (None, "lakerank", {})
    assert (config.model, config.lake.output) == (ModelConfig(path="embedded", dtype="auto"), "out/demo")


def test_defaults_are_not_changed_by_an_override() -> None:
    resolve_config({}, ["lake.output=elsewhere", "model.dtype=float16", "scoring.max_length=2048"])
    assert resolve_config({}) == load_config(REFERENCE)


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.name)
def test_files_in_conf_are_found_by_name(path: Path) -> None:
    assert bundled_config(path.stem) == path


@pytest.mark.parametrize("name", ["nothing", "conf/demo", "../conf/demo", "demo.yaml", ""])
def test_no_other_name_is_a_bundled_config(name: str) -> None:
    assert bundled_config(name) is None


SCALE = {"scale": 1.5, "bias": -2}
ROUTED = {"text": {"path": "t", "calibration": {**SCALE}}, "image": {"path": "i", "calibration": {**SCALE}}}
CASCADE = [{"path": "cheap"}, {"path": "strong", "top": 20}]
KEPT = [{"path": "cheap"}, {"path": "strong", "keep": {"recall": 0.98, "sample": 200}}]
ENSEMBLE = {"ensemble": [{"path": "a"}, {"path": "b"}]}


def _with_model(model: Any, *overrides: str) -> Config:
    return resolve_config(read_yaml(DEMO) | {"model": deepcopy(model)}, overrides)


def _model_faults(model: Any, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        _with_model(model, *overrides)
    return list(caught.value.faults)


def test_a_model_has_one_of_four_shapes() -> None:
    assert isinstance(_with_model({"path": "x"}).model, ModelConfig)
    assert isinstance(_with_model(ROUTED).model, RoutedConfig)
    cascade = _with_model(CASCADE).model
    assert isinstance(cascade, tuple)
    assert [type(stage) for stage in cascade] == [CascadeStageConfig] * 2
    assert isinstance(_with_model(ENSEMBLE).model, EnsembleConfig)


@pytest.mark.parametrize("model", [ROUTED, CASCADE, ENSEMBLE], ids=["routed", "cascade", "ensemble"])
def test_every_shape_reads_back_as_itself(model: Any) -> None:
    config = _with_model(model)
    assert resolve_config(yaml.safe_load(config.to_yaml())) == config


def test_one_model_of_several_can_be_set() -> None:
    assert _with_model(ROUTED, "model.image.path=new").rerankers[0].image.path == "new"
    assert [reranker.path for reranker in _with_model(CASCADE, "model.1.path=new").rerankers] == ["cheap", "new"]
    assert [reranker.path for reranker in _with_model(ENSEMBLE, "model.ensemble.0.path=new").rerankers] == ["new", "b"]


@pytest.mark.parametrize(
    ("model", "override", "expected"),
    [
        (CASCADE, "model.2.path=x", "--set model.2.path=x: model is a list of 2, without '2'"),
        (CASCADE, "model.x.path=x", "--set model.x.path=x: model is a list of 2, without 'x'"),
        (
            CASCADE,
            "model.path=x",
            "--set model.path=x: model is a list; name an element's setting, as in model.0.path",
        ),
        (ROUTED, "model.path=x", "--set model.path: no such setting"),
        ({"path": "x"}, "model.top=3", "--set model.top: no such setting"),
        ({"path": "x"}, "model.calibration={}", "--set model.calibration: no such setting"),
        (
            ROUTED,
            "model.text.calibration.scale=-1",
            "--set model.text.calibration.scale: must be greater than 0 (found -1)",
        ),
        (CASCADE, "model.1.top=null", "--set model.1.top: 1: which documents of the stage before does it score?"),
        (CASCADE, "model.0.top=5", "--set model.0.top: 0.top: the first reranker scores every candidate"),
        ([*CASCADE, {"path": "x", "top": 30}], "", "config: model: top may not rise from stage to stage: [20, 30]"),
        (
            CASCADE,
            "model.0.keep.recall=0.9",
            "--set model.0.keep.recall: 0.keep: the first reranker scores every candidate",
        ),
        (CASCADE, "model.1.keep.recall=0.9", "--set model.1.keep.recall: 1: which documents"),
        (KEPT, "model.1.keep.recall=1.0", "--set model.1.keep.recall: must be less than or equal to 0.9999"),
        (KEPT, "model.1.keep.of_top=0", "--set model.1.keep.of_top: must be greater than or equal to 1"),
        ([*CASCADE, {**KEPT[1], "keep": {"recall": 0.9, "of_top": 30}}], "", "config: model: top may not rise"),
        (CASCADE[:1], "", "config: model: a list is a cascade of two rerankers or more"),
        (CASCADE, "model.1.device=cuda:1", "--set model.1.device: device must be the same"),
        (ROUTED, "model.text.device=cpu", "--set model.text.device: device must be the same"),
        ({"ensemble": CASCADE[:1]}, "", "config: model: ensemble: two rerankers or more"),
        (ENSEMBLE, "model.weights=[1]", "--set model.weights: weights: 1 for 2 rerankers"),
        (ENSEMBLE, "model.weights=[0, 0]", "--set model.weights: weights: all are 0"),
        ("embedded", "", 'config: model: expected settings, such as {name: value} (found "embedded")'),
    ],
)
def test_a_model_of_no_shape_is_refused(model: Any, override: str, expected: str) -> None:
    (fault,) = _model_faults(model, *[override] if override else [])
    assert fault.startswith(expected)


def test_two_models_without_a_common_scale_are_refused() -> None:
    faults = _model_faults({"text": {"path": "t"}, "image": {"path": "i", "calibration": None}})
    assert [fault.partition(": missing: one list holds pairs of both models")[0] for fault in faults] == [
        "config: model.text.calibration",
        "config: model.image.calibration",
    ]


def test_faults_of_all_models_are_listed_at_once() -> None:
    faults = _model_faults([{"path": "x", "dtype": "int8"}, {"top": 0, "nope": 1}])
    assert [fault.split(": ")[1] for fault in faults] == [
        "model.0.dtype",
        "model.1.path",
        "model.1.top",
        "model.1.nope",
    ]


def test_resolved_config_reads_back_as_itself() -> None:
    config = load_config(DEMO)
    assert resolve_config(yaml.safe_load(config.to_yaml())) == config


@given(st.sampled_from(SETTINGS))
def test_setting_a_value_to_what_it_is_changes_nothing(name: str) -> None:
    config = load_config(DEMO)
    assert (
        load_config(DEMO, [f"{name}={yaml.safe_dump(_get(config, name), default_flow_style=True).removesuffix(END)}"])
        == config
    )


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
    said = sorted(fault.partition(";")[0] for fault in faults)
    assert said == sorted(f"--set scoring.{name}: no such setting" for name in names)


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
    assert fault == "--set audit.max_reject_rate: must be less than or equal to 1 (found 2)"


@pytest.mark.parametrize("override", ["=1", "scoring", ".x=1", "a..b=1", ""])
def test_malformed_override_is_a_fault(override: str) -> None:
    assert _faults([override]) == [f"--set {override}: expected section.key=value"]


def test_override_below_a_value_is_a_fault() -> None:
    assert _faults(["model.path.x=1"]) == ["--set model.path.x=1: model.path is a value, not a section"]


@pytest.mark.parametrize(
    "text",
    [
        "a: b", "a # b", "#b", "1e3", "on", "no", "true", "2026-01-31", "12:30", "010", "~/lake", "*.parquet", "@a",
        "[a]/b.parquet", "{a}", "%a", "`a`", "& a", "!a", "- a", "? a", "| a", "> a", "---", "a=b", "<<", "=", ".5",
    ],
)  # fmt: skip
def test_a_text_is_taken_whole_whatever_yaml_would_make_of_it(text: str, tmp_path: Path) -> None:
    config = load_config(DEMO, [f"lake.output={text}", f"lake.storage.profile={text}"])
    assert (config.lake.output, config.lake.storage.profile) == (text, text)
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(resolved) == config


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("lake.output=", "--set lake.output: no value; say null for none, '' for an empty text"),
        ("lake.output=null", "--set lake.output: expected text (found null)"),
        ("lake.output='a' b", "--set lake.output: the value is not YAML"),
        ("lake.output='a' # b", "--set lake.output: YAML drops what follows '#'"),
        ("ranking.label_thresholds=[0.5] # b", "--set ranking.label_thresholds: YAML drops what follows '#'"),
        ("scoring.host_threads=on", "--set scoring.host_threads: expected a whole number (found on)"),
        ("scoring.unit_tokens=12:30", "--set scoring.unit_tokens: expected a whole number (found 12:30)"),
        ("scoring.unit_tokens=5 # b", "--set scoring.unit_tokens: expected a whole number (found 5 # b)"),
        ("scoring.reproducible=2", "--set scoring.reproducible: expected true or false (found 2)"),
        ("audit.max_reject_rate=little", "--set audit.max_reject_rate: expected a number (found little)"),
        ("audit=3", "--set audit: expected settings, such as {name: value} (found 3)"),
        ("ranking.label_thresholds=0.5", "--set ranking.label_thresholds: expected a list, such as [0.5] (found 0.5)"),
        ("model.dtype=int8", "--set model.dtype: expected 'auto', 'float32', 'bfloat16' or 'float16' (found int8)"),
        ("model.device=gpu", "--set model.device: expected auto, cpu, cuda, cuda:1 and so on, or mps"),
        ("lake.docments=x", "--set lake.docments: no such setting; did you mean documents?"),
        ("lak.output=x", "--set lak.output: no such setting; did you mean lake?"),
        ("lake.endpoint_url=x", "--set lake.endpoint_url: no such setting; did you mean lake.storage.endpoint_url?"),
        ("spark.master=x", "--set spark.master: no such setting; did you mean spark.conf.spark.master?"),
        ("audit.max_reject_rates.bad_luck=1", "--set audit.max_reject_rates"),
    ],
)
def test_what_cannot_be_taken_is_refused_in_words(override: str, fault: str) -> None:
    (found,) = _faults([override])
    assert found.startswith(fault)


def test_a_dotted_property_can_be_set() -> None:
    properties = {"spark.master": "local[2]", "spark.ui.enabled": "true", "spark.x": "a # b"}
    config = load_config(DEMO, [f"spark.conf.{name}={value}" for name, value in properties.items()])
    assert config.spark.conf == load_config(DEMO).spark.conf | properties
    rates = load_config(DEMO, ["audit.max_reject_rates.missing_document=0.5"]).audit.max_reject_rates
    assert rates == {"missing_document": 0.5}


def test_a_property_with_settings_of_its_own_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    switches = "scoring: {host_threads: true, unit_tokens: 010}\naudit: {max_churn: true}\n"
    path.write_text("spark: {conf: {spark: {master: x}}}\n" + switches)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert sorted(fault.removeprefix(f"{path}: ") for fault in caught.value.faults) == [
        "audit.max_churn: expected a number (found true)",
        "scoring.host_threads: expected a number (found true)",
        "spark.conf: spark: a property is one dotted name with a value, such as spark.master: local[2]",
    ]


def test_override_that_is_not_yaml_is_a_fault() -> None:
    (fault,) = _faults(["ranking.label_thresholds=[1"])
    assert fault.startswith("--set ranking.label_thresholds: the value is not YAML")


def test_limits_that_contradict_each_other_are_a_fault() -> None:
    (fault,) = _faults(["scoring.max_query_length=9000"])
    assert "no room is left for the document" in fault
    (fault,) = _faults(["scoring.min_pixels=700000"])
    assert "is above max_pixels" in fault


def test_missing_settings_are_named(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("model: {}\nlake: {output: mine/out}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    missing = ("lake.documents", "lake.queries", "lake.candidates", "model.path")
    assert set(caught.value.faults) == {f"{path}: {name}: missing" for name in missing}


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


COLUMNS = "lake.columns."


def test_columns_are_those_of_the_contract_and_of_one_meaning_a_table() -> None:
    config = load_config(DEMO, [f"{COLUMNS}documents.text=page.body", f"{COLUMNS}queries.text=TEXT"])
    assert config.lake.columns.documents == {"text": "page.body"}
    located = config.lake.located()
    assert config.lake.columns.by_address(located) == {
        located.documents: {"text": "page.body"},
        located.queries: {"text": "TEXT"},
    }
    (fault,) = _faults([f"{COLUMNS}documents.tekst=body"])
    assert "documents.tekst: no such column; there are doc_id, text" in fault
    one_table = [f"lake.{name}=mine.parquet" for name in ("documents", "queries")]
    load_config(DEMO, [*one_table, f"{COLUMNS}documents.text=body", f"{COLUMNS}queries.query_id=id"])
    (fault,) = _faults([*one_table, f"{COLUMNS}documents.text=body", f"{COLUMNS}queries.text=question"])
    assert "columns.queries.text: another table of the same address has 'body' for it" in fault
    before, after = (config.model_dump(mode="json") for config in (load_config(DEMO), config))
    assert changed_settings(before, after) == {
        f"{COLUMNS}documents": ({}, {"text": "page.body"}),
        f"{COLUMNS}queries": ({}, {"text": "TEXT"}),
    }
