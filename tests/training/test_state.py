"""A saved state is restored exactly, and never into another run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lakerank.errors import StorageError
from lakerank_training.config import load_train_config
from lakerank_training.run import identify_run, read_inputs
from lakerank_training.step import adamw
from lakerank_training.trainer import RunIdentity, StateFolder, TrainState, differences
from training_lakes import table_paths

IDENTITY = RunIdentity({"seed": 3}, [(6, {"name": "pairs", "groups": 2})])


def parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"matrix": (4, 3), "bias": (4,)}
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the state after a step."""
    trained = parameters()
    optimizer = adamw(trained, 0.1)
    for value in trained.values():
        value.grad = torch.ones_like(value)
    optimizer.param_groups[0]["lr"] = 0.01
    optimizer.step()
    StateFolder(tmp_path / "state", IDENTITY).save(
        TrainState(step=6, best=0.5, stale=1, figures={"seen": 0.5}), trained, optimizer
    )
    return tmp_path / "state"


def load(folder: Path, identity: RunIdentity = IDENTITY) -> tuple[TrainState, dict[str, nn.Parameter]]:
    loaded = parameters(seed=1)
    return StateFolder(folder, identity).load(loaded, adamw(loaded, 0.1)), loaded


def test_weights_and_moments_come_back(folder: Path) -> None:
    loaded = parameters(seed=1)
    optimizer = adamw(loaded, 0.1)
    assert StateFolder(folder, IDENTITY).load(loaded, optimizer) == TrainState(6, 0.5, 1, {"seen": 0.5})
    stored = load_file(folder / "state-6.safetensors")
    for name, value in loaded.items():
        assert torch.equal(stored[f"parameter/{name}"], value.detach())
        assert {f"{moment}/{name}" for moment in optimizer.state[value]} < stored.keys()
        for moment, tensor in optimizer.state[value].items():
            assert torch.equal(stored[f"{moment}/{name}"], tensor)


def test_a_folder_without_a_state_is_a_run_s_beginning(tmp_path: Path) -> None:
    assert load(tmp_path)[0] == TrainState()


def test_another_run_s_state_is_refused_and_left_as_it_was(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = RunIdentity({"seed": 4}, IDENTITY.stages)
    with pytest.raises(StorageError, match=r"another run: seed \(was 3, is 4\); choose another output, or remove"):
        load(folder, other)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_state_of_other_parameters_is_refused(folder: Path) -> None:
    tensors = load_file(folder / "state-6.safetensors")
    tensors["parameter/matrix"] = tensors["parameter/matrix"][1:].clone()
    save_file(tensors, folder / "state-6.safetensors")
    record = json.loads((folder / "state.json").read_text())
    del record["hash"], record["checksum"]
    (folder / "state.json").write_text(json.dumps(record))
    with pytest.raises(StorageError, match="other parameters were trained; choose another output"):
        load(folder)


def test_an_earlier_version_s_state_is_refused(folder: Path) -> None:
    record = json.loads((folder / "state.json").read_text())
    del record["figures"], record["checksum"]
    (folder / "state.json").write_text(json.dumps(record))
    with pytest.raises(StorageError, match="an earlier version saved this state"):
        load(folder)


@pytest.mark.parametrize("corrupt", ["state.json", "state-6.safetensors"])
@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]])
def test_a_corrupt_state_says_what_to_do(folder: Path, corrupt: str, damage: Callable[[bytes], bytes]) -> None:
    (folder / corrupt).write_bytes(damage((folder / corrupt).read_bytes()))
    with pytest.raises(StorageError, match=r"the saved state is corrupt .*; remove it to start again"):
        load(folder)


def identity(path: Path, *overrides: str, step: int = 6) -> dict[str, object]:
    config = load_train_config(path, overrides)
    return identify_run(config, read_inputs(config)).at(step)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("seed=4", "seed (was 3, is 4)"),
        ("optimizer.learning_rate=0.1", "optimizer.learning_rate (was 0.001, is 0.1)"),
        ("evaluation.candidates=11", "evaluation.candidates (was 12, is 11)"),
        ("stages.1.groups=2", "stages.1.groups (was 3, is 2)"),
    ],
)
def test_settings_are_part_of_a_run(training_config: Callable[..., Path], change: str, named: str) -> None:
    path = training_config()
    assert differences(identity(path), identity(path, change)) == [named]


def test_what_may_change_while_a_run_is_on_its_way(
    training_config: Callable[..., Path], colour_lake: Path, tmp_path: Path
) -> None:
    """Where its tables lie, how it is computed, measured and saved, and the stages that are to come."""
    path, moved = training_config(), table_paths(tmp_path)
    for name, address in table_paths(colour_lake).items():
        pq.write_table(pq.read_table(address), moved[name], row_group_size=7)
    overrides = [f"{where}.{name}={moved[name]}" for where in ("lake", "evaluation.slices.seen") for name in moved]
    overrides += ["gradient_checkpointing=true", "optimizer.step_tokens=100", "checkpoint_every=1", "lora.merge=false"]
    overrides += ["evaluation.every=3", "evaluation.patience=5", "stages.1.groups=2"]
    assert differences(identity(path, step=3), identity(path, *overrides, step=3)) == []


def test_what_tables_hold_is_part_of_a_run(
    training_config: Callable[..., Path], colour_lake: Path, tmp_path: Path
) -> None:
    tables = {name: pq.read_table(address) for name, address in table_paths(colour_lake).items()}
    pairs = tables["qrels"].drop_columns("relevance")
    score, rank = pa.array(np.arange(len(pairs)) / 9), pa.nulls(len(pairs), pa.int32())
    tables["candidates"] = pairs.append_column("first_stage_rank", rank).append_column("first_stage_score", score)
    tables["teacher"] = pairs.append_column("logit", score.cast(pa.float32()))
    files = {name: str(tmp_path / f"{name}.parquet") for name in tables}
    for name, table in tables.items():
        pq.write_table(table, files[name])
    seen = table_paths(tmp_path)
    path = training_config(
        lake={**files, "topic": "topic"}, evaluation={"every": 9, "candidates": 12, "slices": {"seen": seen}}
    )
    before = identity(path)
    for name, table in tables.items():
        pq.write_table(changed(table), files[name])
        named = [f"evaluation.slices.seen.{name}"] if name in seen else []
        assert [fault.split()[0] for fault in differences(before, identity(path))] == [*named, f"lake.{name}"]
        pq.write_table(table, files[name])
    assert differences(before, identity(path)) == []


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
    path = training_config(start={"path": str(base)})
    before = identity(path)
    weights = load_file(base / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, base / "model.safetensors")
    assert [fault.split()[0] for fault in differences(before, identity(path))] == ["start.path"]
