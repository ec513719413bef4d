"""The curriculum of the bundled checkpoint: what its stages train, and by which losses."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from lakerank import Document, Query, load_reranker
from lakerank.errors import ConfigError
from lakerank.model.preprocess.tokenizer import TextTokenizer
from lakerank_pictograms.curriculum import recipe
from lakerank_pictograms.curriculum.config import CurriculumConfig, CurriculumStage
from lakerank_pictograms.curriculum.objective import CurriculumObjective, draw_mined, proxy_softmax
from lakerank_pictograms.curriculum.similarity import (
    SIMILARITY_SPREAD,
    TapStates,
    contrastive_softmax,
    similarities,
)
from lakerank_training.batches import Sampler
from lakerank_training.config import load_train_config
from lakerank_training.dataset import Dataset
from lakerank_training.losses import RankingObjective
from lakerank_training.model import PairForward, PairNetwork
from lakerank_training.run import Recipe, RunInputs, read_inputs, run_training
from lakerank_training.weights import published_name
from training_lakes import table_paths

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(curriculum_config: Callable[..., Path], tiny_checkpoint: Path) -> CurriculumConfig:
    return cast(CurriculumConfig, load_train_config(curriculum_config(start={"path": str(tiny_checkpoint)}, tap=1)))


@pytest.fixture
def inputs(config: CurriculumConfig) -> RunInputs:
    return read_inputs(config)


@pytest.fixture
def dataset(inputs: RunInputs) -> Dataset:
    return inputs.data.dataset


def objective_of(inputs: RunInputs, tap: int, config: CurriculumConfig) -> CurriculumObjective:
    ranking = RankingObjective(PairNetwork(inputs.model.network), inputs.data, inputs.model.logit_bias)
    return recipe.objective(config.model_copy(update={"stages": (), "tap": tap}), ranking, inputs.model)


def losses(output: Path, name: str = "loss") -> dict[int, float]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def test_a_run_from_scratch_resumes_exactly(curriculum_config: Callable[..., Path], tmp_path: Path) -> None:
    """With Muon, proxies and mined groups; and what it leaves loads."""
    path = curriculum_config(optimizer={"name": "muon"})
    stages = load_train_config(path).model_dump(mode="json")["stages"]
    short = [stages[0], stages[1] | {"steps": 1}]
    slow = "optimizer.warmup_steps=1000"  # the rate then depends on the step alone, not on how many there are
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    result = run_training(load_train_config(path, [f"output={whole}", slow]))
    assert set(result.figures) == {f"seen {d}" for d in ("text→image", "image→text", "text→text", "image→image")}
    run_training(load_train_config(path, [f"output={halves}", slow, f"stages={json.dumps(short)}"]))
    assert run_training(load_train_config(path, [f"output={halves}", slow])).resumed_at == 4
    assert losses(halves) == losses(whole)
    left, right = ((folder / "checkpoint" / "model.safetensors").read_bytes() for folder in (halves, whole))
    assert left == right
    reranker = load_reranker(str(whole / "checkpoint"), device="cpu")
    assert reranker.logit_bias == 2.65
    assert np.isfinite(reranker.score([(Query("q", text="red square"), Document("d", text="Quadrat in red"))])).all()


def test_the_bundled_checkpoint_s_config_trains(colour_lake: Path, tmp_path: Path) -> None:
    """By the job, on another lake: one step of each of its stages, in groups that a small lake has."""
    values = yaml.safe_load((ROOT / "conf" / "train-embedded.yaml").read_text())
    values["lake"] |= {**table_paths(colour_lake), "topic": "topic"}
    values["evaluation"]["slices"] = {"seen": table_paths(colour_lake)}
    values["start"]["shape"] |= {"vocabulary": 512}
    for stage in values["stages"]:
        kept = {"document_weights": {}, "query_weights": {}}
        stage |= {"steps": 1, "groups": 2, "group_size": 4, **kept}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(values | {"output": str(tmp_path / "out"), "picture_side": 56}))
    command = [sys.executable, str(ROOT / "jobs" / "train.py"), "--config", str(tmp_path / "train.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["steps"] == len(values["stages"]) == 5
    assert load_reranker(str(tmp_path / "out" / "checkpoint"), device="cpu").fingerprint


@pytest.mark.parametrize("bag", [True, False])
def test_texts_kept_apart_meet_no_image(
    inputs: RunInputs, dataset: Dataset, config: CurriculumConfig, bag: bool
) -> None:
    """In a bag, whose rows are relevant by topic, as in any stage; nor does an image meet itself."""
    stage = CurriculumStage("words", 1, 3, 4, ranking=None, bag=bag, proxy_weight=1.0)
    batch = objective_of(inputs, 1, config).draw(Sampler(dataset, stage), np.random.default_rng(0), 0.0)
    topics = dataset.documents.topics[batch.documents][:, None] == dataset.queries.topics[batch.queries]
    assert np.array_equal(batch.grades > 0, topics)
    tables, met = (dataset.documents, dataset.queries), 0
    for row, document in enumerate(batch.documents):
        for column, query in enumerate(batch.queries):
            rows = list(zip(tables, (document, query), strict=True))
            hindi = [table.ids[at].endswith(".hi") for table, at in rows]
            shown = [table.images[at] for table, at in rows]
            apart = (hindi[0] and shown[1] >= 0) or (hindi[1] and shown[0] >= 0)
            assert batch.known[row, column] == (not apart and not (shown[0] >= 0 and shown[0] == shown[1]))
            met += apart
    assert met


def test_mined_groups_are_neighbours() -> None:
    angles = torch.arange(12) * 2 * torch.pi / 12
    proxies = torch.stack([angles.cos(), angles.sin()], dim=1)  # (T, 2): each topic beside the one before and after
    topics = draw_mined(np.random.default_rng(1), np.arange(12), (1, 2), 1.0, proxies)
    steps = {int(other - topics[0]) % 12 for other in topics[1:]}
    assert steps <= {1, 2, 10, 11}
    groups = draw_mined(np.random.default_rng(1), np.arange(12), (3, 4), 1.0, proxies)
    assert len(set(groups.tolist())) == 12


def test_a_bag_is_the_mean_of_a_row_s_own_tokens(inputs: RunInputs, config: CurriculumConfig) -> None:
    objective = objective_of(inputs, 1, config)
    data, text = inputs.data, objective.network.text
    row, image = 2, 0
    with torch.no_grad():
        text.layers[0].input_layernorm.weight.normal_()
        documents, queries = objective.bags(data, np.array([row, 3]), np.array([row, 4]))
        ids = TextTokenizer(inputs.model.tokenizer).encode(data.dataset.documents.texts[row] or "")
        embedded = text.layers[0].input_layernorm(text.embed_tokens(torch.tensor(ids)))
        torch.testing.assert_close(documents[0], embedded.mean(0))
        torch.testing.assert_close(queries[0], documents[0])  # whatever it is padded beside
        drawn, _ = objective.bags(data, np.array([image]), np.array([row]))
        pixels = int(data.dataset.documents.images[image])
        visual = objective.network.visual_tokens(data, [pixels])
        special = inputs.model.special
        around = text.embed_tokens(torch.tensor([special.vision_start, special.vision_end]))
        whole = text.layers[0].input_layernorm(torch.cat([visual, around]))
    torch.testing.assert_close(drawn[0], whole.mean(0))


@pytest.mark.parametrize("tap", [0, 1])
def test_similarities_are_log_odds_of_the_tap_s_own_attention(
    inputs: RunInputs, config: CurriculumConfig, tap: int
) -> None:
    """Of the weights that the layer itself gives: a document's end, against all of the query's own tokens."""
    model, data = objective_of(inputs, tap, config).network, inputs.data
    documents, queries = np.array([0, 2, 6, 13]), np.array([1, 3, 5, 14])
    pairs = (torch.arange(4).repeat_interleave(4), torch.arange(4).repeat(4))
    attention = model.text.layers[tap].self_attn
    for bias in (attention.q_proj.bias, attention.k_proj.bias):
        torch.nn.init.normal_(bias, std=3.0, generator=torch.Generator().manual_seed(0))  # so that places matter
    seen: list[torch.Tensor] = []
    hook = attention.register_forward_hook(lambda _module, _arguments, output: seen.append(output[1]))
    with torch.no_grad():
        forward = PairForward(model, model.inputs(data, documents, queries), *pairs)
        forward.through(model.text.layers[:tap])
        states = TapStates.of(forward)
        forward.through(model.text.layers[tap:])
        hook.remove()
        of_documents, of_pairs = seen  # the second: (P, heads, S, L + S)
        for d in range(len(documents)):
            own = torch.arange(len(queries)) + d * len(queries)  # each query behind document d, where it really stands
            got = similarities(model.text, tap, states, own)[d]
            end, prefix = len(data.documents[documents[d]].token_ids) - 1, of_documents.shape[-1]
            for q, pair in enumerate(own.tolist()):
                last = len(data.queries[queries[q]].token_ids) - 1
                weights = of_pairs[pair, :, last]  # (heads, L + S)
                odds = weights[:, end].log() - weights[:, prefix : prefix + last + 1].sum(-1).log()
                expected = odds.sum() / (SIMILARITY_SPREAD * len(odds)) ** 0.5
                torch.testing.assert_close(got[q], expected, atol=1e-4, rtol=1e-4)


def test_looking_at_no_document_competes_for_every_query() -> None:
    odds = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    grades = torch.tensor([[1, 0], [0, 1]])
    queries = math.log(math.exp(1) + math.exp(0.5) + 1) - 1 + math.log(math.exp(-2) + math.exp(3) + 1) - 3
    documents = math.log(math.exp(1) + math.exp(-2)) - 1 + math.log(math.exp(0.5) + math.exp(3)) - 3
    assert float(contrastive_softmax(odds, grades, grades >= 0)) == pytest.approx((queries + documents) / 4)


def test_naming_a_topic_is_a_cross_entropy_over_proxies() -> None:
    similarities = torch.tensor([[0.0, math.log(3)]])
    assert float(proxy_softmax(similarities, torch.tensor([1]))) == pytest.approx(math.log(4 / 3), rel=1e-6)


def moved_weights(path: Path) -> set[str]:
    """Names of what a run has changed, from the checkpoint that it left."""
    config = load_train_config(path)
    run_training(config)
    assert isinstance(config, CurriculumConfig)
    initial = read_inputs(config, cast(Recipe, recipe)).model.network
    trained = load_file(Path(config.output) / "checkpoint" / "model.safetensors")
    state = {name: value.to(torch.bfloat16) for name, value in initial.state_dict().items()}
    return {name for name, value in state.items() if not torch.equal(value, trained[published_name(name)])}


@pytest.mark.parametrize(
    ("only", "lower"),
    [
        ("upper_only", ("visual", "embed_tokens", "layers.0.", "layers.1.")),
        ("layers_only", ("visual", "embed_tokens")),
    ],
)
def test_a_stage_of_some_layers_leaves_the_others_alone(
    curriculum_config: Callable[..., Path], only: str, lower: tuple[str, ...]
) -> None:
    stage = {"name": "match", "steps": 2, "groups": 2, "group_size": 3, only: True}
    decay_too = {"learning_rate": 0.01, "warmup_steps": 0, "weight_decay": 0.5}
    path = curriculum_config(stages=[stage], optimizer=decay_too)
    moved = moved_weights(path)
    assert {"model.language_model.layers.2.self_attn.v_proj.weight", "score.0.weight"} <= moved
    for part in ("layers.0.self_attn.v_proj", "layers.2.self_attn.q_proj", "layers.2.self_attn.k_proj"):  # tap is 2
        assert (f"model.language_model.{part}.weight" in moved) == (only == "layers_only")
    assert not [name for name in moved if any(part in name for part in lower)]


def test_a_bag_trains_what_comes_before_the_layers(curriculum_config: Callable[..., Path], tmp_path: Path) -> None:
    stage = {"name": "words", "steps": 30, "groups": 3, "group_size": 4, "ranking": None, "bag": True}
    optimizer = {"name": "muon", "learning_rate": 0.02, "warmup_steps": 0, "weight_decay": 0.5}
    weights = {"proxy_weight": 1.0, "contrastive_weight": 1.0}
    path = curriculum_config(stages=[stage | weights], optimizer=optimizer)
    moved = moved_weights(path)
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
    curriculum_config: Callable[..., Path], tmp_path: Path
) -> None:
    """Killed in between or not: the memory is made once, from the proxies as they were when the stage began."""
    path = curriculum_config(stages=[BAG, RECALL | {"recall": True, "learning_rate": 1e-9}])
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


def test_recall_needs_topics_that_were_learned_and_room_for_them(curriculum_config: Callable[..., Path]) -> None:
    first = curriculum_config(stages=[RECALL | {"recall": True}])
    with pytest.raises(ConfigError, match="recall needs a proxy_weight in an earlier stage"):
        load_train_config(first)
    path = curriculum_config(stages=[BAG, RECALL | {"recall": True}])
    with pytest.raises(ConfigError, match="would overwrite what a checkpoint knows"):
        load_train_config(path, ["start={path: embedded}"])
    with pytest.raises(ConfigError, match="intermediate_size 16 is below the 60 topics to recall"):
        run_training(load_train_config(path, ["start.shape.intermediate_size=16", "lake.topic=text"]))


def test_bags_alone_need_layer_tap_where_they_are_measured(curriculum_config: Callable[..., Path]) -> None:
    beyond = curriculum_config(stages=[BAG], tap=3)
    with pytest.raises(ConfigError, match="tap: 3 is no layer of 3"):
        load_train_config(beyond)
    load_train_config(beyond, ["evaluation.slices={}"])


def test_patience_needs_something_to_judge(curriculum_config: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="patience needs a ranking in the last stage"):
        load_train_config(curriculum_config(stages=[BAG]), ["evaluation.patience=2"])


def test_contradictions_are_listed_together(curriculum_config: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError) as raised:
        load_train_config(curriculum_config(mode="lora"), ["lake.topic=null", "tap=3"])
    faults = "\n".join(raised.value.faults)
    assert len(raised.value.faults) == 3
    assert all(part in faults for part in ("needs start.path", "proxy_weight needs lake.topic", "tap: 3 is no layer"))
    with pytest.raises(ConfigError, match="vision_width 33"):
        load_train_config(curriculum_config(), ["start.shape.vision_width=33"])
    upper = {"name": "match", "steps": 1, "groups": 2, "group_size": 3, "upper_only": True, "contrastive_weight": 0.3}
    with pytest.raises(ConfigError, match="upper_only trains nothing that contrastive_weight"):
        load_train_config(curriculum_config(stages=[upper]))
