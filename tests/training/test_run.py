"""Whole runs: a killed one resumes with the same result, and its output loads."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from lakerank import Document, Query, load_reranker
from lakerank.errors import ConfigError, StorageError, TrainingError
from lakerank_training.config import load_train_config
from lakerank_training.model import Lora, adapt, load_model
from lakerank_training.run import run_training
from lakerank_training.trainer import TrainingResult
from training_lakes import table_paths, write_config

#: Peft asks for it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ROOT = Path(__file__).parents[2]
PAIR = [(Query("q", text="red square"), Document("d", text="Quadrat in red"))]


def losses(output: Path, name: str = "loss") -> dict[int, float]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def records(output: Path) -> list[dict[str, Any]]:
    """Every line of the metrics, but for the seconds."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def finished(training_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainingResult]:
    """A finished run, its config, and its result."""
    constant = {"optimizer": {"floor": 1.0, "warmup_steps": 0}}  # the rate does not depend on how many steps there are
    path = write_config(tmp_path_factory.mktemp("finished"), training_values | constant)
    return path, run_training(load_train_config(path))


def test_a_resumed_run_equals_an_uninterrupted_one(finished: tuple[Path, TrainingResult], tmp_path: Path) -> None:
    path, whole = finished
    output = f"output={tmp_path}"
    stages = load_train_config(path).model_dump(mode="json")["stages"]
    short = [stages[0] | {"steps": 3}, stages[1] | {"steps": 1}]
    run_training(load_train_config(path, [output, f"stages={json.dumps(short)}"]))
    resumed = run_training(load_train_config(path, [output]))
    assert (whole.steps, resumed.resumed_at) == (6, 4)
    assert losses(tmp_path) == losses(path.parent / "out")
    left, right = (load_file(folder / "checkpoint" / "model.safetensors") for folder in (tmp_path, path.parent / "out"))
    assert all(torch.equal(left[name], right[name]) for name in right)


def test_a_trained_checkpoint_loads_and_its_figures_are_said(finished: tuple[Path, TrainingResult]) -> None:
    path, outcome = finished
    assert set(outcome.figures) == {f"seen {d}" for d in ("text→image", "image→text", "text→text", "image→image")}
    reranker = load_reranker(str(path.parent / "out" / "checkpoint"), device="cpu")
    assert reranker.logit_bias == 2.65
    assert np.isfinite(reranker.score(PAIR)).all()


def test_a_run_goes_on_where_another_is_refused(
    finished: tuple[Path, TrainingResult], colour_lake: Path, tmp_path: Path
) -> None:
    """With tables elsewhere, another way to compute, measure and save, and a stage more; not with another seed."""
    output = Path(shutil.copytree(finished[0].parent / "out", tmp_path / "out"))
    path = shutil.copy(finished[0], tmp_path)
    before = {file: file.read_bytes() for file in output.rglob("*") if file.is_file()}
    with pytest.raises(StorageError, match=r"another run: seed \(was 3, is 4\); choose another output, or remove"):
        run_training(load_train_config(path, [f"output={output}", "seed=4"]))
    assert {file: file.read_bytes() for file in output.rglob("*") if file.is_file()} == before
    moved = table_paths(tmp_path)
    for name, address in table_paths(colour_lake).items():
        pq.write_table(pq.read_table(address), moved[name], row_group_size=7)
    overrides = [f"{where}.{name}={moved[name]}" for where in ("lake", "evaluation.slices.seen") for name in moved]
    overrides += ["gradient_checkpointing=true", "optimizer.step_tokens=100", "evaluation.every=3", f"output={output}"]
    stages = load_train_config(path).model_dump(mode="json")["stages"]
    overrides.append(f"stages={json.dumps([*stages, stages[0] | {'name': 'more', 'steps': 1}])}")
    with (output / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "loss": 9}\n{"step": 8, "lo')  # killed while writing, after the last checkpoint
    outcome = run_training(load_train_config(path, overrides))
    assert (outcome.resumed_at, outcome.steps) == (6, 7)
    assert list(losses(output)) == [1, 2, 3, 4, 5, 6, 7]
    assert losses(output)[7] < 9


LORA: dict[str, Any] = {
    "mode": "lora",
    "lora": {"rank": 4, "alpha": 8, "dropout": 0.5, "merge": True},
    "stages": [{"name": "adapt", "steps": 3, "groups": 2, "group_size": 3}],
    "optimizer": {"learning_rate": 0.01, "warmup_steps": 0, "floor": 1.0},  # constant: however many steps there are
}


@pytest.fixture(scope="module")
def adapted(training_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a finished run that has left an adapter, and a checkpoint with the adapter in it."""
    path = write_config(tmp_path_factory.mktemp("adapted"), training_values | LORA)
    run_training(load_train_config(path))
    return path


def test_an_adapter_loads_and_scores_as_it_was_trained(adapted: Path, tiny_checkpoint: Path) -> None:
    before = load_reranker(str(tiny_checkpoint), device="cpu", dtype="float32").score(PAIR)
    adapter = adapted.parent / "out" / "adapter"
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


def test_a_merged_checkpoint_scores_as_its_adapter_does(adapted: Path, tiny_checkpoint: Path) -> None:
    adapter, checkpoint = (str(adapted.parent / "out" / name) for name in ("adapter", "checkpoint"))
    assert json.loads(Path(adapter, "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        tiny_checkpoint
    )
    merged = load_reranker(checkpoint, device="cpu")
    beside = load_reranker(str(tiny_checkpoint), adapter=adapter, device="cpu")
    np.testing.assert_array_equal(merged.score(PAIR), beside.score(PAIR))
    assert merged.fingerprint != load_reranker(str(tiny_checkpoint), device="cpu").fingerprint


def test_merging_into_a_bfloat16_checkpoint_rounds_nothing_away(tiny_checkpoint: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_checkpoint, base)
    weights = {name: value.to(torch.bfloat16) for name, value in load_file(base / "model.safetensors").items()}
    save_file(weights, base / "model.safetensors")
    model = load_model(str(base))
    adapted = replace(model, adapter=adapt(model.network, Lora(rank=4, alpha=8), 0, str(base)))
    for name, value in adapted.network.named_parameters():
        if "lora_B" in name:  # 0 at first: without training there would be nothing to round away
            torch.nn.init.normal_(value, std=0.01)
    adapted.save(tmp_path)
    adapted.merge(tmp_path)
    merged = load_reranker(str(tmp_path / "checkpoint"), device="cpu").score(PAIR)
    np.testing.assert_allclose(merged, unmerged_logit(base, tmp_path / "adapter"), atol=1e-5)
    stored = load_file(tmp_path / "checkpoint" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float32}


def test_saving_an_adapter_looks_for_nothing_elsewhere(tmp_path: Path) -> None:
    model = load_model("embedded")
    adapter = adapt(model.network, Lora(rank=4, alpha=8), 0, "embedded")
    replace(model, adapter=adapter).save(tmp_path)  # peft would warn that it found no such repository
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == "embedded"


def test_a_merged_checkpoint_is_laid_out_as_its_base(tiny_checkpoint: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_checkpoint, base)
    config = json.loads((base / "config.json").read_text())
    classes = {"architectures": ["Theirs"], "auto_map": {"AutoModel": "modeling.Theirs"}}
    (base / "config.json").write_text(json.dumps(config | classes))
    (base / "modeling.py").write_text("raise RuntimeError('never run here')\n")
    model = load_model(str(base))
    adapted = replace(model, adapter=adapt(model.network, Lora(rank=4, alpha=8), 0, str(base)))
    adapted.save(tmp_path)
    adapted.merge(tmp_path)
    assert {file.name for file in (tmp_path / "checkpoint").iterdir()} == {file.name for file in base.iterdir()}
    merged = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    assert merged == config | classes | {"logit_bias": 2.65, "score_token_id": 100}
    for name in ("modeling.py", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "checkpoint" / name).read_bytes() == (base / name).read_bytes()


def test_dropout_resumes_too(adapted: Path, tmp_path: Path) -> None:
    short = [LORA["stages"][0] | {"steps": 1}]
    run_training(load_train_config(adapted, [f"output={tmp_path}", f"stages={json.dumps(short)}"]))
    torch.rand(7)  # whatever else drew in between
    run_training(load_train_config(adapted, [f"output={tmp_path}"]))
    assert losses(tmp_path) == losses(adapted.parent / "out")


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


def test_what_the_lake_cannot_give_is_refused_at_once(
    training_config: Callable[..., Path], plain_lake: dict[str, str], colour_lake: Path
) -> None:
    held_out = table_paths(colour_lake)
    stages = [{"name": "pairs", "steps": 2, "groups": 4, "group_size": 4}]
    evaluation = {"slices": {"held out": held_out}}
    config = load_train_config(training_config(lake=plain_lake, stages=stages, evaluation=evaluation))
    with pytest.raises(ConfigError) as raised:
        run_training(config)
    assert "16 different queries, the lake has 12" in raised.value.faults[0]
    assert "12 of its queries are trained on ('black.en' first)" in raised.value.faults[1]


def test_training_stops_when_nothing_gets_better_and_leaves_the_best(
    training_config: Callable[..., Path], colour_lake: Path, tmp_path: Path
) -> None:
    tables = table_paths(colour_lake)
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


@pytest.fixture(scope="module")
def patient(training_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainingResult]:
    """A finished run of many evaluations, its config, and its result."""
    changes = {
        "stages": [{"name": "pairs", "steps": 12, "groups": 2, "group_size": 4}],
        "evaluation": training_values["evaluation"] | {"every": 2, "patience": 2},
        "optimizer": {"learning_rate": 0.01, "warmup_steps": 0},
        "checkpoint_every": 1,
    }
    path = write_config(tmp_path_factory.mktemp("patient"), training_values | changes)
    return path, run_training(load_train_config(path))


@pytest.mark.parametrize(
    ("module", "function", "call"),
    [  # in what follows step 2: its evaluation, the first and so the best; publishing that; saving the second state
        ("lakerank_training.validate", "mean_ndcg", 2),
        ("shutil", "copyfile", 1),
        ("lakerank_training.trainer", "StateFolder.save", 2),
    ],
)
def test_a_run_killed_after_a_step_makes_up_for_what_it_missed(
    patient: tuple[Path, TrainingResult], tmp_path: Path, module: str, function: str, call: int
) -> None:
    (finished, whole), output = patient, tmp_path / "out"
    path = tmp_path / "train.yaml"
    path.write_text(finished.read_text().replace(str(finished.parent), str(tmp_path)))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "lib")}
    words = [sys.executable, ROOT / "tests" / "training" / "killed_run.py", path, module, function, str(call)]
    killed = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = run_training(load_train_config(path))
    assert again.resumed_at == 1
    assert (again.steps, again.stopped_early, again.figures) == (whole.steps, whole.stopped_early, whole.figures)
    left, right = output, finished.parent / "out"
    for name in ("checkpoint/model.safetensors", "checkpoint/config.json", f"state/state-{whole.steps}.safetensors"):
        assert (left / name).read_bytes() == (right / name).read_bytes(), name
    assert records(left) == records(right)
