"""Whole runs: a killed one goes on as if nothing had happened, and what they leave loads."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from lakerank import Document, Query, load_reranker
from lakerank.errors import ConfigError, StorageError, TrainingError
from lakerank.lake.storage import Storage
from lakerank.model.jina_m0.weights import JinaVLForRanking, network_config, published_name
from lakerank.training.batches import text_rows
from lakerank.training.config import LoraConfig, StartConfig, load_train_config
from lakerank.training.fresh import TOKENS
from lakerank.training.run import run_training
from lakerank.training.start import adapt, begin
from lakerank.training.tables import Columns, Sources, read_lake
from lakerank_benchmark.shapes import SHAPES

ROOT = Path(__file__).parents[2]
TABLES = ("documents", "queries", "qrels")
PAIR = [(Query("q", text="red square"), Document("d", text="Quadrat in red"))]


def losses(output: Path, name: str = "loss") -> dict[int, float]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def records(output: Path) -> list[dict[str, Any]]:
    """Every line of the metrics, but for the seconds."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    training_config: Callable[..., Path], tmp_path: Path, optimizer: str
) -> None:
    path = training_config(optimizer={"name": optimizer})
    whole = run_training(load_train_config(path, [f"output={tmp_path / 'whole'}"]))
    stages = load_train_config(path).model_dump(mode="json")["stages"]
    short = [stages[0] | {"steps": 3}, stages[1] | {"steps": 1}]
    slow = "optimizer.warmup_steps=1000"  # the rate then depends on the step alone, not on how many there are
    reference, halves = tmp_path / "reference", tmp_path / "halves"
    run_training(load_train_config(path, [f"output={reference}", slow]))
    run_training(load_train_config(path, [f"output={halves}", slow, f"stages={json.dumps(short)}"]))
    resumed = run_training(load_train_config(path, [f"output={halves}", slow]))
    assert whole.steps == 6
    assert resumed.resumed_at == 4
    assert losses(halves) == losses(reference)
    left, right = (load_file(folder / "checkpoint" / "model.safetensors") for folder in (halves, reference))
    assert all(torch.equal(left[name], right[name]) for name in right)


def test_a_trained_checkpoint_loads_and_its_figures_are_said(
    training_config: Callable[..., Path], tmp_path: Path
) -> None:
    outcome = run_training(load_train_config(training_config()))
    assert set(outcome.figures) == {f"seen {d}" for d in ("text→image", "image→text", "text→text", "image→image")}
    reranker = load_reranker(str(tmp_path / "out" / "checkpoint"), device="cpu")
    assert reranker.logit_bias == 2.65
    assert np.isfinite(reranker.score(PAIR)).all()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("start.shape.layers=4", r"start\.shape\.layers \(was 3, is 4\)"),
        ("seed=4", r"seed \(was 3, is 4\)"),
        ("optimizer.learning_rate=0.1", r"optimizer\.learning_rate \(was 0\.001, is 0\.1\)"),
        ("evaluation.candidates=11", r"evaluation\.candidates \(was 12, is 11\)"),
        ("lake.apart={language: [sv]}", r"lake\.apart\.language \(was \['hi'\], is \['sv'\]\)"),
    ],
)
def test_another_run_s_state_is_refused(
    training_config: Callable[..., Path], tmp_path: Path, change: str, named: str
) -> None:
    """And what the first one left is as it was."""
    run_training(load_train_config(training_config()))
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(StorageError, match=f"another run: {named}; choose another output, or remove"):
        run_training(load_train_config(training_config(), [change]))
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_a_state_is_refused_where_tables_hold_something_else(
    training_config: Callable[..., Path], colour_lake: Path, tmp_path: Path
) -> None:
    tables = {name: pq.read_table(colour_lake / f"{name}.parquet") for name in TABLES}
    pairs = tables["qrels"].drop_columns("relevance")
    score, rank = pa.array(np.arange(len(pairs)) / 9), pa.nulls(len(pairs), pa.int32())
    tables["candidates"] = pairs.append_column("first_stage_rank", rank).append_column("first_stage_score", score)
    tables["teacher"] = pairs.append_column("logit", score.cast(pa.float32()))
    files = {name: str(tmp_path / f"{name}.parquet") for name in tables}
    for name, table in tables.items():
        pq.write_table(table, files[name])
    seen = {name: files[name] for name in TABLES}
    evaluation = {"every": 9, "candidates": 12, "slices": {"seen": seen}}
    path = training_config(lake={**files, "topic": "topic"}, evaluation=evaluation)
    run_training(load_train_config(path))
    for name, table in tables.items():
        pq.write_table(changed(table), files[name])
        named = rf"lake\.{name} \(was \w{{16}}, is \w{{16}}\)"
        if name in seen:
            named = rf"evaluation\.slices\.seen\.{name} \(was \w{{16}}, is \w{{16}}\); {named}"
        with pytest.raises(StorageError, match=f"another run: {named}; choose another output"):
            run_training(load_train_config(path))
        pq.write_table(table, files[name])
    assert run_training(load_train_config(path)).resumed_at == 6


def changed(table: pa.Table) -> pa.Table:
    """Another text or number in the last row."""
    name = "text" if "text" in table.column_names else table.column_names[-1]
    values = table[name].to_pylist()
    values[-1] += " indeed" if name == "text" else 1
    return table.set_column(table.column_names.index(name), name, pa.array(values, table.schema.field(name).type))


def test_another_base_is_another_run(
    training_config: Callable[..., Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    path = training_config(start={"path": str(base)}, tap=1)
    run_training(load_train_config(path))
    weights = load_file(base / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, base / "model.safetensors")
    with pytest.raises(StorageError, match=r"another run: start\.path \(was"):
        run_training(load_train_config(path))


def test_what_may_change_while_a_run_is_on_its_way(
    training_config: Callable[..., Path], colour_lake: Path, tmp_path: Path
) -> None:
    """Where its tables lie, how it is computed, measured and saved, and the stages that are to come."""
    stages = load_train_config(training_config()).model_dump(mode="json")["stages"]
    run_training(load_train_config(training_config(), [f"stages={json.dumps(stages[:1])}"]))
    for table in TABLES:
        pq.write_table(pq.read_table(colour_lake / f"{table}.parquet"), tmp_path / table, row_group_size=7)
    overrides = [f"{where}.{name}={tmp_path / name}" for where in ("lake", "evaluation.slices.seen") for name in TABLES]
    overrides += ["gradient_checkpointing=true", "optimizer.step_tokens=100", "checkpoint_every=1"]
    overrides += ["evaluation.every=3", "evaluation.patience=5"]
    stages[1]["only"] = {"language": ["en", "de"]}
    outcome = run_training(load_train_config(training_config(), [*overrides, f"stages={json.dumps(stages)}"]))
    assert (outcome.resumed_at, outcome.steps) == (3, 6)
    stages[1]["only"] = {}
    with pytest.raises(StorageError, match=r"another run: stages\.1\.chosen_by .*stages\.1\.only\.language"):
        run_training(load_train_config(training_config(), [*overrides, f"stages={json.dumps(stages)}"]))


def test_a_state_of_other_parameters_is_refused(training_config: Callable[..., Path], tmp_path: Path) -> None:
    run_training(load_train_config(training_config()))
    file = tmp_path / "out" / "state" / "state-6.safetensors"
    tensors = load_file(file)
    tensors["parameter/proxies.weight"] = tensors["parameter/proxies.weight"][1:].clone()
    save_file(tensors, file)
    with pytest.raises(StorageError, match="other parameters were trained; choose another output"):
        run_training(load_train_config(training_config()))


def test_an_earlier_version_s_state_is_refused(training_config: Callable[..., Path], tmp_path: Path) -> None:
    run_training(load_train_config(training_config()))
    file = tmp_path / "out" / "state" / "state.json"
    record = json.loads(file.read_text())
    del record["run"]
    file.write_text(json.dumps(record))
    with pytest.raises(StorageError, match="an earlier version saved this state"):
        run_training(load_train_config(training_config()))


@pytest.mark.parametrize("torn", ["state.json", "state-6.safetensors"])
def test_a_torn_state_says_what_to_do(training_config: Callable[..., Path], tmp_path: Path, torn: str) -> None:
    run_training(load_train_config(training_config()))
    file = tmp_path / "out" / "state" / torn
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(StorageError, match=r"the saved state is torn .*; remove it to start anew"):
        run_training(load_train_config(training_config()))


@pytest.mark.parametrize(
    ("only", "lower"),
    [
        ("upper_only", ("visual", "embed_tokens", "layers.0.", "layers.1.")),
        ("layers_only", ("visual", "embed_tokens")),
    ],
)
def test_a_stage_of_some_layers_leaves_the_others_alone(
    training_config: Callable[..., Path], colour_lake: Path, tmp_path: Path, only: str, lower: tuple[str, ...]
) -> None:
    stage = {"name": "match", "steps": 2, "groups": 2, "group_size": 3, only: True}
    decay_too = {"learning_rate": 0.01, "warmup_steps": 0, "weight_decay": 0.5}
    path = training_config(stages=[stage], optimizer=decay_too)
    run_training(load_train_config(path))
    lake = read_lake(
        Storage(), Sources(*(str(colour_lake / f"{name}.parquet") for name in TABLES)), Columns("topic", "kind"), 56
    )
    fresh = begin(load_train_config(path), list(text_rows(lake)), 2.65, 100).network
    trained = load_file(tmp_path / "out" / "checkpoint" / "model.safetensors")
    moved = {name for name, value in fresh.state_dict().items() if not same(value, trained[published_name(name)])}
    assert {"model.language_model.layers.2.self_attn.v_proj.weight", "score.0.weight"} <= moved
    for part in ("layers.0.self_attn.v_proj", "layers.2.self_attn.q_proj", "layers.2.self_attn.k_proj"):  # tap is 2
        assert (f"model.language_model.{part}.weight" in moved) == (only == "layers_only")
    assert not [name for name in moved if any(part in name for part in lower)]


def test_a_bag_trains_what_comes_before_the_layers(
    training_config: Callable[..., Path], colour_lake: Path, tmp_path: Path
) -> None:
    stage = {"name": "words", "steps": 30, "groups": 3, "group_size": 4, "ranking": None, "bag": True}
    optimizer = {"name": "muon", "learning_rate": 0.02, "warmup_steps": 0, "weight_decay": 0.5}
    weights = {"proxy_weight": 1.0, "contrastive_weight": 1.0}
    path = training_config(stages=[stage | weights], optimizer=optimizer)
    run_training(load_train_config(path))
    lake = read_lake(
        Storage(), Sources(*(str(colour_lake / f"{name}.parquet") for name in TABLES)), Columns("topic", "kind"), 56
    )
    fresh = begin(load_train_config(path), list(text_rows(lake)), 2.65, 100).network
    trained = load_file(tmp_path / "out" / "checkpoint" / "model.safetensors")
    moved = {name for name, value in fresh.state_dict().items() if not same(value, trained[published_name(name)])}
    assert "model.language_model.embed_tokens.weight" in moved
    assert "model.visual.blocks.0.attn.qkv.weight" in moved
    below = ("visual", "embed_tokens", "layers.0.input_layernorm")
    assert all(any(part in name for part in below) for name in moved)
    for name in ("proxies", "contrastive"):
        falling = losses(tmp_path / "out", name)
        assert falling[30] < falling[1] / 2


BAG = {"name": "words", "steps": 30, "groups": 3, "group_size": 4, "ranking": None, "bag": True, "proxy_weight": 1.0}
RECALL = {"name": "towers", "steps": 2, "groups": 3, "group_size": 4, "ranking": None, "contrastive_weight": 1.0}


def test_topics_that_a_bag_has_learned_are_recalled_by_the_layer_before_the_tap(
    training_config: Callable[..., Path], tmp_path: Path
) -> None:
    """Killed in between or not: the memory is made once, from the proxies as they were when the stage began."""
    path = training_config(stages=[BAG, RECALL | {"recall": True, "learning_rate": 1e-9}])
    stopped = [f"stages={json.dumps([BAG])}", f"output={tmp_path / 'halves'}"]
    run_training(load_train_config(path, stopped))
    run_training(load_train_config(path, [f"output={tmp_path / 'halves'}"]))
    run_training(load_train_config(path))
    states = [load_file(next((tmp_path / name / "state").glob("*.safetensors"))) for name in ("out", "halves")]
    config = load_train_config(path)
    mlp = f"parameter/network.model.language_model.layers.{config.tap - 1}.mlp"
    for state in states:
        topics = state["parameter/proxies.weight"]
        gate, up, down = (state[f"{mlp}.{name}_proj.weight"] for name in ("gate", "up", "down"))
        sharp = 8 * torch.nn.functional.normalize(topics, dim=1)  # (topics, H): each topic as a layer might read it
        recalled = (torch.nn.functional.silu(sharp @ gate.T) * (sharp @ up.T)) @ down.T
        likeness = torch.nn.functional.normalize(recalled, dim=1) @ torch.nn.functional.normalize(topics, dim=1).T
        assert (likeness.argmax(1) == torch.arange(len(topics))).all()
    assert torch.equal(states[0][f"{mlp}.gate_proj.weight"], states[1][f"{mlp}.gate_proj.weight"])


def test_recall_needs_topics_that_were_learned_and_room_for_them(training_config: Callable[..., Path]) -> None:
    first = training_config(stages=[RECALL | {"recall": True}])
    with pytest.raises(ConfigError, match="recall needs a proxy_weight in an earlier stage"):
        load_train_config(first)
    path = training_config(stages=[BAG, RECALL | {"recall": True}])
    with pytest.raises(ConfigError, match="would overwrite what a checkpoint knows"):
        load_train_config(path, ["start={path: embedded}"])
    with pytest.raises(ConfigError, match="intermediate_size 16 has no room to recall the lake's 60 topics"):
        run_training(load_train_config(path, ["start.shape.intermediate_size=16", "lake.topic=text"]))


def same(fresh: torch.Tensor, stored: torch.Tensor) -> bool:
    return torch.equal(fresh.to(torch.bfloat16), stored)


LORA: dict[str, Any] = {
    "mode": "lora",
    "lora": {"rank": 4, "alpha": 8},
    "tap": 1,
    "stages": [{"name": "adapt", "steps": 3, "groups": 2, "group_size": 3}],
    "optimizer": {"learning_rate": 0.01, "warmup_steps": 0},
}


def test_lora_touches_only_projections_and_the_score_head(
    training_config: Callable[..., Path], tiny_checkpoint: Path
) -> None:
    config = load_train_config(training_config(start={"path": str(tiny_checkpoint)}, **LORA))
    network = begin(config, [], 2.65, 100).network
    trained = {name for name, value in network.named_parameters() if value.requires_grad}
    projections = {f"self_attn.{x}_proj" for x in "qkvo"} | {f"mlp.{x}_proj" for x in ("gate", "up", "down")}
    expected = {
        f"model.language_model.layers.{layer}.{module}.lora_{side}.default.weight"
        for layer in range(2)
        for module in projections
        for side in "AB"
    }
    expected |= {f"score.modules_to_save.default.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")}
    assert trained == expected


def test_lora_on_eighty_million_parameters_trains_the_factors_and_the_score_head_alone() -> None:
    shape = SHAPES["random-80m"]
    tokens = {name: 100 + place for place, name in enumerate(TOKENS)}
    with torch.device("meta"):
        network: Any = JinaVLForRanking(network_config(shape, tokens, None))
        whole = sum(value.numel() for value in network.parameters())
        adapt(network, LoraConfig(rank=16), 0, StartConfig(path="embedded"))
    assert whole == 87_353_473
    counts = {name: value.numel() for name, value in network.named_parameters() if value.requires_grad}
    hidden, inner, heads = 640, 1792, 128  # keys and values have two heads of 64
    sizes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden, heads),
        "self_attn.v_proj": (hidden, heads),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }
    expected = {
        f"model.language_model.layers.{layer}.{module}.lora_{side}.default.weight": 16 * width
        for layer in range(13)
        for module, widths in sizes.items()
        for side, width in zip("AB", widths, strict=True)
    }
    head = {"0.weight": hidden * hidden, "0.bias": hidden, "2.weight": hidden, "2.bias": 1}
    expected |= {f"score.modules_to_save.default.{name}": count for name, count in head.items()}
    assert counts == expected
    assert sum(counts.values()) == 2_369_536 + 410_881  # factors, head
    assert not [name for name in counts if "visual" in name]  # encoder and projector (visual.merger)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_an_adapter_loads_and_scores_as_it_was_trained(
    training_config: Callable[..., Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path = training_config(start={"path": str(tiny_checkpoint)}, **LORA)
    before = load_reranker(str(tiny_checkpoint), device="cpu", dtype="float32").score(PAIR)
    run_training(load_train_config(path))
    adapter = tmp_path / "out" / "adapter"
    merged = load_reranker(str(tiny_checkpoint), adapter=str(adapter), device="cpu", dtype="float32")
    after = merged.score(PAIR)
    assert abs(float(after[0] - before[0])) > 1e-3
    np.testing.assert_allclose(after, unmerged_logit(tiny_checkpoint, adapter), atol=1e-5)


def unmerged_logit(checkpoint: Path, adapter: Path) -> np.ndarray:
    """The same pair through peft's own unmerged layers."""
    from peft import PeftModel

    from lakerank.model.jina_m0.config import read_settings
    from lakerank.model.jina_m0.weights import load_network
    from lakerank.model.preprocess.tokenizer import read_tokenizer, text_positions

    network = load_network(checkpoint, read_settings(checkpoint, "float32"))
    adapted = PeftModel.from_pretrained(network, str(adapter)).get_base_model()
    tokenizer = read_tokenizer(checkpoint / "tokenizer.json")
    ids = tokenizer.encode("**Document**:\nQuadrat in red\n", add_special_tokens=False).ids
    ids += [*tokenizer.encode("**Query**:\nred square", add_special_tokens=False).ids, 100]
    positions = torch.from_numpy(text_positions(0, len(ids))).unsqueeze(1)
    with torch.no_grad():
        decoder = adapted.model.language_model
        embeds = decoder.embed_tokens(torch.tensor([ids]))
        hidden = decoder(inputs_embeds=embeds, position_ids=positions, use_cache=False).last_hidden_state[:, -1]
        logits: np.ndarray = adapted.score(hidden).squeeze(-1).numpy()
    return logits


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_a_merged_checkpoint_scores_as_its_adapter_does(
    training_config: Callable[..., Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    settings = LORA | {"lora": {"rank": 4, "alpha": 8, "merge": True}}
    run_training(load_train_config(training_config(start={"path": str(tiny_checkpoint)}, **settings)))
    adapter = str(tmp_path / "out" / "adapter")
    assert json.loads(Path(adapter, "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        tiny_checkpoint
    )
    merged = load_reranker(str(tmp_path / "out" / "checkpoint"), device="cpu")
    beside = load_reranker(str(tiny_checkpoint), adapter=adapter, device="cpu")
    np.testing.assert_array_equal(merged.score(PAIR), beside.score(PAIR))
    assert merged.fingerprint != load_reranker(str(tiny_checkpoint), device="cpu").fingerprint


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_merging_into_a_bfloat16_checkpoint_rounds_nothing_away(
    training_config: Callable[..., Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_checkpoint, base)
    weights = {name: value.to(torch.bfloat16) for name, value in load_file(base / "model.safetensors").items()}
    save_file(weights, base / "model.safetensors")
    settings = LORA | {"lora": {"rank": 4, "alpha": 8, "merge": True}}
    run_training(load_train_config(training_config(start={"path": str(base)}, **settings)))
    merged = load_reranker(str(tmp_path / "out" / "checkpoint"), device="cpu").score(PAIR)
    np.testing.assert_allclose(merged, unmerged_logit(base, tmp_path / "out" / "adapter"), atol=1e-5)
    stored = load_file(tmp_path / "out" / "checkpoint" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float32}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_saving_an_adapter_looks_for_nothing_elsewhere(training_config: Callable[..., Path], tmp_path: Path) -> None:
    config = load_train_config(training_config(start={"path": "embedded"}, **LORA))
    begin(config, [], 2.65, 100).save(tmp_path)  # peft would warn that it found no such repository
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == "embedded"


def test_a_merged_checkpoint_is_laid_out_as_its_base(
    training_config: Callable[..., Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_checkpoint, base)
    config = json.loads((base / "config.json").read_text())
    classes = {"architectures": ["Theirs"], "auto_map": {"AutoModel": "modeling.Theirs"}}
    (base / "config.json").write_text(json.dumps(config | classes))
    (base / "modeling.py").write_text("raise RuntimeError('never run here')\n")
    begun = begin(load_train_config(training_config(start={"path": str(base)}, **LORA)), [], 2.65, 100)
    begun.save(tmp_path)
    begun.merge(tmp_path)
    assert {file.name for file in (tmp_path / "checkpoint").iterdir()} == {file.name for file in base.iterdir()}
    merged = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    assert merged == config | classes | {"logit_bias": 2.65, "score_token_id": 100}
    for name in ("modeling.py", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "checkpoint" / name).read_bytes() == (base / name).read_bytes()


def test_dropout_resumes_too(training_config: Callable[..., Path], tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = LORA | {"lora": {"dropout": 0.5}, "checkpoint_every": 1, "augment": False}
    path = training_config(start={"path": str(tiny_checkpoint)}, **settings)
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    slow = "optimizer.warmup_steps=1000"
    run_training(load_train_config(path, [f"output={whole}", slow]))
    short = [LORA["stages"][0] | {"steps": 1}]
    run_training(load_train_config(path, [f"output={halves}", slow, f"stages={json.dumps(short)}"]))
    torch.rand(7)  # whatever else drew in between
    run_training(load_train_config(path, [f"output={halves}", slow]))
    assert losses(halves) == losses(whole)


def test_metrics_of_steps_that_were_lost_are_dropped(training_config: Callable[..., Path], tmp_path: Path) -> None:
    path = training_config()
    run_training(load_train_config(path))
    metrics = tmp_path / "out" / "metrics.jsonl"
    with metrics.open("a") as file:
        file.write('{"step": 7, "loss": 9}\n{"step": 8, "lo')  # killed while writing, after the last checkpoint
    run_training(load_train_config(path))
    assert list(losses(tmp_path / "out")) == [1, 2, 3, 4, 5, 6]


def test_training_that_diverges_stops(training_config: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"lower optimizer\.learning_rate"):
        run_training(load_train_config(training_config(), ["optimizer.learning_rate=1e38", "optimizer.warmup_steps=0"]))


def test_a_gradient_that_is_not_finite_changes_nothing(training_config: Callable[..., Path], tmp_path: Path) -> None:
    """The loss still is, so that the weights would be spoilt, and saved, before anything looks wrong."""
    steep = {"name": "pairs", "steps": 2, "groups": 2, "group_size": 3, "pointwise_weight": 1e38}
    path = training_config(stages=[steep], checkpoint_every=1)
    with pytest.raises(TrainingError, match=r"step 1: the gradient's norm is (inf|nan); lower optimizer"):
        run_training(load_train_config(path))
    assert not (tmp_path / "out" / "state").exists()
    assert not (tmp_path / "out" / "checkpoint").exists()


def test_a_lake_without_topics_trains(training_config: Callable[..., Path], plain_lake: dict[str, str]) -> None:
    stages = [{"name": "pairs", "steps": 2, "groups": 2, "group_size": 3, "contrastive_weight": 0.1}]
    run = load_train_config(training_config(lake=plain_lake, stages=stages, evaluation={"every": 9}))
    assert run_training(run).steps == 2


def test_what_the_lake_cannot_give_is_refused_at_once(
    training_config: Callable[..., Path], plain_lake: dict[str, str], colour_lake: Path
) -> None:
    held_out = {name: str(colour_lake / f"{name}.parquet") for name in ("documents", "queries", "qrels")}
    changes = {"evaluation": {"slices": {"held out": held_out}}, "tap": 3}
    stages = [{"name": "pairs", "steps": 2, "groups": 4, "group_size": 4, "contrastive_weight": 0.1}]
    start = {"shape": {"vocabulary": 512, "layers": 4, "hidden_size": 64, "heads": 2, "key_value_heads": 1}}
    config = load_train_config(training_config(lake=plain_lake, stages=stages, start=start, **changes))
    with pytest.raises(ConfigError) as raised:
        run_training(config)
    assert "16 different queries, the lake gives 12" in raised.value.faults[0]
    assert "12 of its queries are trained on ('black.en' first)" in raised.value.faults[1]


def test_faults_of_a_config_are_listed_together(training_config: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError) as raised:
        load_train_config(training_config(stages=[], start={}), ["seed=x", "optimizer.clip=0"])
    assert len(raised.value.faults) == 4


@pytest.mark.parametrize("name", ["train-embedded", "train-lora", "train-clicks"])
def test_configs_in_conf_are_sound(name: str) -> None:
    load_train_config(Path(__file__).parents[2] / "conf" / f"{name}.yaml")


def test_contradictions_are_listed_together(training_config: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError) as raised:
        load_train_config(training_config(mode="lora"), ["lake.topic=null", "tap=3"])
    faults = "\n".join(raised.value.faults)
    assert len(raised.value.faults) == 3
    assert all(part in faults for part in ("needs start.path", "proxy_weight needs lake.topic", "tap: 3 is no layer"))
    with pytest.raises(ConfigError, match="vision_width 33"):
        load_train_config(training_config(), ["start.shape.vision_width=33"])
    upper = {"name": "match", "steps": 1, "groups": 2, "group_size": 3, "upper_only": True, "contrastive_weight": 0.3}
    with pytest.raises(ConfigError, match="upper_only trains nothing that contrastive_weight"):
        load_train_config(training_config(stages=[upper]))


def test_bags_alone_need_layer_tap_where_they_are_measured(training_config: Callable[..., Path]) -> None:
    beyond = training_config(stages=[BAG], tap=3)
    with pytest.raises(ConfigError, match="tap: 3 is no layer of 3"):
        load_train_config(beyond)
    load_train_config(beyond, ["evaluation.slices={}"])


def test_patience_needs_something_to_judge(training_config: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="patience needs a ranking in the last stage"):
        load_train_config(training_config(stages=[BAG]), ["evaluation.patience=2"])


@pytest.mark.parametrize("output", ["s3://bucket/out", "file:///tmp/out"])
def test_an_output_that_is_no_path_is_refused(training_config: Callable[..., Path], output: str) -> None:
    with pytest.raises(ConfigError, match=f"output: {output} is a URI"):
        load_train_config(training_config(), [f"output={output}"])


def test_training_stops_when_nothing_gets_better_and_leaves_the_best(
    training_config: Callable[..., Path], colour_lake: Path, tmp_path: Path
) -> None:
    tables = {name: str(colour_lake / f"{name}.parquet") for name in TABLES}
    stage = {"name": "pairs", "steps": 9, "groups": 2, "group_size": 4}
    evaluation = {"every": 2, "candidates": 12, "patience": 2, "slices": {"seen": tables}}
    frozen = {"learning_rate": 1e-12, "warmup_steps": 0, "weight_decay": 0}
    path = training_config(stages=[stage], evaluation=evaluation, optimizer=frozen)
    outcome = run_training(load_train_config(path))
    assert (outcome.steps, outcome.stopped_early) == (6, True)  # the first evaluation is the best, two more are not
    card = (tmp_path / "out" / "checkpoint" / "README.md").read_text()
    assert "6 steps (stopped early; these are the best weights)" in card
    assert "| seen text→text |" in card
    again = run_training(load_train_config(path))
    assert (again.resumed_at, again.steps) == (6, 6)
    assert (tmp_path / "out" / "progress.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("module", "function", "call"),
    [  # in what follows step 2: its evaluation, the first and so the best; publishing that; saving the second state
        ("lakerank.training.evaluation", "ndcg", 2),
        ("lakerank.model.jina_m0.weights", "published_config", 1),
        ("lakerank.training.state", "save_state", 2),
    ],
)
def test_a_run_killed_after_a_step_makes_up_for_what_it_missed(
    training_config: Callable[..., Path], colour_lake: Path, tmp_path: Path, module: str, function: str, call: int
) -> None:
    tables = {name: str(colour_lake / f"{name}.parquet") for name in TABLES}
    stage = {"name": "pairs", "steps": 12, "groups": 2, "group_size": 4}
    evaluation = {"every": 2, "candidates": 12, "patience": 2, "slices": {"seen": tables}}
    quick = {"learning_rate": 0.01, "warmup_steps": 0}
    path = training_config(stages=[stage], evaluation=evaluation, optimizer=quick, checkpoint_every=1)
    whole = run_training(load_train_config(path, [f"output={tmp_path / 'whole'}"]))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "lib")}
    words = [sys.executable, ROOT / "tests" / "training" / "killed_run.py", path, module, function, str(call)]
    killed = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = run_training(load_train_config(path))
    assert again.resumed_at == 1
    assert (again.steps, again.stopped_early, again.figures) == (whole.steps, whole.stopped_early, whole.figures)
    left, right = (tmp_path / name for name in ("out", "whole"))
    for name in ("checkpoint/model.safetensors", "checkpoint/config.json", f"state/state-{whole.steps}.safetensors"):
        assert (left / name).read_bytes() == (right / name).read_bytes(), name
    assert records(left) == records(right)


def test_what_is_trained_on_is_not_measured_as_held_out(
    training_config: Callable[..., Path], colour_lake: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    renamed = {name: str(tmp_path / f"{name}.parquet") for name in TABLES}
    for name in TABLES:  # the same rows, every query under a new id; half of them ask something new
        table = pq.read_table(colour_lake / f"{name}.parquet")
        if "query_id" in table.column_names:
            ids = pc.binary_join_element_wise("new", table["query_id"], "-")
            table = table.set_column(table.column_names.index("query_id"), "query_id", ids)
        if name == "queries":
            texts = [text and (text + " please" if "square" in text else text) for text in table["text"].to_pylist()]
            table = table.set_column(table.column_names.index("text"), "text", pa.array(texts))
        pq.write_table(table, renamed[name])
    held_out = {"slices": {"held out": renamed}, "candidates": 12}
    with pytest.raises(ConfigError, match="12 of the topics that its queries are about are trained on"):
        run_training(load_train_config(training_config(evaluation=held_out)))
    held_out["slices"] = {"held out": renamed | {"same_topics": True}}
    figures = run_training(load_train_config(training_config(evaluation=held_out))).figures
    assert "48 queries say what a query that is trained on says: left out" in caplog.text
    assert set(figures) == {"held out text→image", "held out text→text"}  # pictures ask nothing new
