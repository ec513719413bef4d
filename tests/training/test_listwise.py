"""The recipe `listwise`: what it starts from, what it minimises, and that scoring reads what it leaves."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from lakerank import Document, Query, load_reranker
from lakerank.errors import ConfigError
from lakerank.lake.storage import Storage
from lakerank.model.checkpoint import EMBEDDED
from lakerank.model.listwise.config import JINA_V3
from lakerank.model.preprocess.tokenizer import read_tokenizer
from lakerank.model.registry import CheckpointIdentity
from lakerank.records import CandidateList
from lakerank_training.batches import Sampler
from lakerank_training.config import load_train_config
from lakerank_training.distill import Distillation, distil
from lakerank_training.listwise import recipe
from lakerank_training.listwise.config import ListwiseConfig
from lakerank_training.listwise.initialise import bundled_vectors
from lakerank_training.listwise.objective import ListObjective
from lakerank_training.losses import RankingObjective
from lakerank_training.model import PairNetwork
from lakerank_training.run import read_inputs, run_training
from training_lakes import COLOURS, write_config

THINGS = ("horse", "train", "apple", "house", "river", "clock", "fish", "crown", "bread", "ship", "tree", "key")
STAGE = {"name": "lists", "steps": 2, "groups": 2, "documents": 4, "singles": 3}


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a config: each of twelve colours is asked for, with two texts about it and three about others in its list."""
    folder = tmp_path_factory.mktemp("lists")
    documents = {
        f"{colour}.{number}": (f"{colour} {thing} {word}" if number < 2 else f"{thing} {word}")
        for colour, thing in zip(COLOURS, THINGS, strict=True)
        for number, word in enumerate("abcde")
    }
    listed = [
        (colour, f"{COLOURS[(place + step) % 12]}.{number}")
        for place, colour in enumerate(COLOURS)
        for number, step in enumerate((0, 0, 1, 2, 3))
    ]
    relevant = [(query, document) for query, document in listed if document.startswith(f"{query}.")]
    tables = {
        "documents": {"doc_id": list(documents), "text": list(documents.values())},
        "queries": {"query_id": list(COLOURS), "text": list(COLOURS)},
        "candidates": dict(zip(("query_id", "doc_id"), zip(*listed, strict=True), strict=True)),
        "qrels": dict(zip(("query_id", "doc_id"), zip(*relevant, strict=True), strict=True)),
    }
    tables["qrels"]["relevance"] = pa.array([2] * len(relevant), pa.int32())
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return {
        "recipe": "listwise",
        "lake": {name: str(folder / f"{name}.parquet") for name in tables},
        "start": {"shape": {"layers": 3, "intermediate_size": 16}},
        "stages": [STAGE],
        "optimizer": {"warmup_steps": 0, "floor": 1.0},
        "checkpoint_every": 2,
        "threads": 1,
    }


def config_of(folder: Path, values: dict[str, Any]) -> ListwiseConfig:
    return cast(ListwiseConfig, load_train_config(write_config(folder, values)))


@pytest.fixture(scope="module")
def objective(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> ListObjective:
    return objective_of(config_of(tmp_path_factory.mktemp("objective"), values))


def objective_of(config: ListwiseConfig) -> ListObjective:
    """As its run starts."""
    inputs = read_inputs(config, cast(Any, recipe))
    ranking = RankingObjective(PairNetwork(inputs.model.network.eval()), inputs.data, 0.0)
    return recipe.objective(config, ranking, inputs.model)


def test_a_run_resumes_exactly_and_scoring_reads_it_as_lists_and_as_pairs(
    values: dict[str, Any], tmp_path: Path
) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    path = write_config(tmp_path, values)
    run_training(load_train_config(path, [f"output={whole}"]))
    run_training(load_train_config(path, [f"output={halves}", f"stages={json.dumps([STAGE | {'steps': 1}])}"]))
    assert run_training(load_train_config(path, [f"output={halves}"])).resumed_at == 1
    stored = whole / "checkpoint" / "model.safetensors"
    assert stored.read_bytes() == (halves / "checkpoint" / "model.safetensors").read_bytes()

    assert "Started from the bundled checkpoint's vectors" in (whole / "checkpoint" / "README.md").read_text("utf-8")

    objective = objective_of(config_of(tmp_path, values))
    network, data = objective.network.network, objective.data
    before = network.projector[0].weight.detach().clone()
    network.load_state_dict({name: tensor.float() for name, tensor in load_file(stored).items()})
    assert not torch.equal(network.projector[0].weight, before)
    rows, query = np.array([0, 5, 11, 30]), 1
    texts, asked = data.dataset.documents.texts, Query("q", text=data.dataset.queries.texts[query])
    documents = tuple(Document(str(row), text=texts[row]) for row in rows)
    with torch.no_grad():
        as_list = objective.cosines([(rows, query)])[0]
        as_pairs = objective.cosines([(rows[[n]], query) for n in range(4)])[:, 0]
    lister = load_reranker(str(whole / "checkpoint"), device="cpu", dtype="float32")
    scored = [math.tanh(each.logit / 2) for each in lister.reranker.score_lists([CandidateList(asked, documents)])]
    np.testing.assert_allclose(scored, as_list, atol=1e-4)
    pairs = load_reranker(str(whole / "checkpoint"), device="cpu", dtype="float32", pointwise=True)
    scored = [math.tanh(logit / 2) for logit in pairs.score([(asked, document) for document in documents])]
    np.testing.assert_allclose(scored, as_pairs, atol=1e-4)
    assert float((as_list - as_pairs).abs().max()) > 1e-3


def test_pairs_start_as_the_cosine_of_mean_vectors_and_lists_feed_back(objective: ListObjective) -> None:
    tokenizer = read_tokenizer(EMBEDDED / "tokenizer.json", names_are_text=True)
    vectors = bundled_vectors(tokenizer.get_vocab_size())

    def mean(text: str | None) -> torch.Tensor:
        return vectors[tokenizer.encode(text or "", add_special_tokens=False).ids].mean(0)

    query, data = 7, objective.data.dataset
    rows = np.array([35, 36, 37, 42])  # the colour and its thing, twice; the thing alone; another thing
    with torch.no_grad():
        as_pairs = objective.cosines([(rows[[n]], query) for n in range(4)])[:, 0]
        as_list = objective.cosines([(rows, query)])[0]
    means = torch.stack([mean(data.documents.texts[row]) for row in rows])
    expected = torch.cosine_similarity(means, mean(data.queries.texts[query])[None])
    assert float((as_pairs - expected).abs().max()) < 0.2
    moved = as_list - as_pairs
    assert float(moved[2] - moved[3]) > 0.05


def test_losses_are_listnets_of_lists_and_of_documents_by_themselves(
    objective: ListObjective, values: dict[str, Any], tmp_path: Path
) -> None:
    config = config_of(tmp_path, values)
    (stage,) = config.stages
    dataset = objective.data.dataset
    batch = objective.draw(Sampler(dataset, stage), np.random.default_rng(4), 0.0)
    with torch.no_grad():
        losses = {name: float(loss) for name, (_, loss) in objective.losses(stage, batch).items()}
        expected: dict[str, list[float]] = {"ranking": [], "pointwise": []}
        for number, query in enumerate(batch.queries.tolist()):
            rows = batch.documents[4 * number : 4 * number + 4]
            relevant = [dataset.documents.ids[row].startswith(f"{dataset.queries.ids[query]}.") for row in rows]
            assert len({*rows.tolist()} & dataset.candidates[query].keys()) == 4
            as_list = objective.cosines([(rows, query)])[0]
            singles = torch.cat([objective.cosines([(rows[[n]], query)])[0] for n in range(3)])
            for name, cosines in (("ranking", as_list), ("pointwise", singles)):
                shares = np.exp(cosines.double().numpy() / config.temperature)
                shares /= shares.sum()
                logs = [math.log(share) for share, is_relevant in zip(shares, relevant, strict=False) if is_relevant]
                expected[name].append(-sum(logs) / len(logs) if logs else 0.0)
    assert losses == pytest.approx({name: np.mean(each) for name, each in expected.items()}, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": [STAGE | {"documents": 6}]}, "needs 2 queries with a relevant document among 6 candidates or more"),
        ({"stages": [STAGE | {"singles": 5}]}, "singles 5 of documents 4"),
        ({"stages": [STAGE | {"hard_negatives": 1}]}, "leave out ranking, hard_negatives"),
        ({"stages": [STAGE | {"group_size": 2}]}, "group_size"),
        ({"mode": "lora"}, "needs mode: full"),
        ({"gradient_checkpointing": True}, "neither gradient_checkpointing nor negatives"),
        ({"start": {"path": "embedded"}}, "start.path"),
        ({"lake": {"documents": "d", "queries": "q", "qrels": "r"}}, "needs lake.candidates"),
    ],
)
def test_what_lists_have_no_use_for_is_refused(
    change: dict[str, Any], message: str, values: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_training(config_of(tmp_path, values | change))


def test_a_lister_is_no_teacher_of_students(tmp_path: Path) -> None:
    lister = CheckpointIdentity("nowhere", "f", 0.0, 1, family=JINA_V3)
    request = Distillation(lister, cast(Any, None), "ranked", tmp_path / "student", layers=1, steps=1)
    with pytest.raises(ConfigError, match=r"jina-reranker-v3 cannot be trained here; students are of jina-reranker-m0"):
        distil(Storage(), request)
    assert not (tmp_path / "student").exists()


def test_a_stage_of_pairs_alone_draws_whole_lists(
    objective: ListObjective, values: dict[str, Any], tmp_path: Path
) -> None:
    config = config_of(tmp_path, values | {"stages": [STAGE | {"ranking_weight": 0.0}]})
    batch = objective.draw(Sampler(objective.data.dataset, config.stages[0]), np.random.default_rng(0), 0.0)
    assert {*objective.losses(config.stages[0], batch)} == {"pointwise"}
