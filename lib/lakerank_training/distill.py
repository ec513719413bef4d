"""Distillation: a student with some of a teacher's layers, trained on the logits that a run has already given."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import trange

from lakerank.config import LakeConfig
from lakerank.errors import CheckpointError, ConfigError
from lakerank.lake.checksums import json_bytes
from lakerank.lake.storage import Storage
from lakerank.lake.tables import fragments, read_table_file
from lakerank.limits import Limits
from lakerank.model.checkpoint import WEIGHTS_NAME, read_json, weight_files
from lakerank.model.registry import M0, CheckpointIdentity
from lakerank.plan.pairs import key_hash
from lakerank.schemas import RANKED
from lakerank_training.batches import TrainingStage
from lakerank_training.config import OptimizerConfig, StartConfig, TrainConfig, TrainingLakeConfig
from lakerank_training.dataset import Dataset, DatasetTables, ImageStore, read_dataset
from lakerank_training.step import Schedule, adamw

#: The number of a layer in a tensor's name: of a language model or a text encoder, not of a vision encoder's blocks.
_LAYER = re.compile(r"(?<=\.layer\.|layers\.)\d+(?=\.)")

#: Text cross-encoders that transformers' own classes train.
ENCODERS = ("bert-reranker", "bge-reranker", "modernbert-reranker")

#: Lengths of batches are multiples of so many tokens: on a CPU each further shape of a product keeps memory.
_PADDED_TO = 64

#: Files beside the weights that are a student's, too.
_KEPT = ("*.json", "*.txt", "*.jinja", "*.model")


@dataclass(frozen=True, slots=True)
class Distillation:
    """What is distilled from what: `layers` of the teacher's, by `steps` of `batch` pairs, on a `share` of the queries.

    `lake` has documents and queries at the snapshots that the run read, `ranked` is the folder of its lists. `device`
    is torch's name. The checkpoint is written into `output`.
    """

    teacher: CheckpointIdentity
    lake: LakeConfig
    ranked: str
    output: Path
    layers: int
    steps: int = 500
    batch: int = 32
    learning_rate: float = 1e-4
    share: float = 1.0
    device: str = "cpu"


def distil(storage: Storage, request: Distillation) -> dict[str, Any]:
    """Write the student as `checkpoint/` of the output; returns how many queries and pairs it has learnt from.

    Raises:
        ConfigError: the run has no lists, or the teacher is of a family whose students cannot be trained here.
        CheckpointError: the teacher has not so many layers.
    """
    family = request.teacher.family
    if family not in (M0, *ENCODERS):
        known = ", ".join((M0, *ENCODERS))
        raise ConfigError([f"model: {family} cannot be trained here; students are of {known}"])
    request.output.mkdir(parents=True, exist_ok=True)
    start, pairs = request.output / "start", request.output / "pairs.parquet"
    prune(Path(request.teacher.folder), start, request.layers)
    queries, rows = write_pairs(storage, request.ranked, pairs, request.share)
    if family == M0:
        _train_decoder(request, start, str(pairs))
    else:
        tables = DatasetTables(request.lake.documents, request.lake.queries, str(pairs), teacher=str(pairs))
        _train_encoder(read_dataset(storage, tables, ImageStore(Limits())), request, start)
    return {"queries": queries, "pairs": rows, "checkpoint": str(request.output / "checkpoint")}


def prune(source: Path, target: Path, layers: int) -> None:
    """Write a checkpoint with so many of another's text layers, evenly spaced from the first to the last.

    Raises CheckpointError: it has fewer.
    """
    config = read_json(source / "config.json")
    text = config.get("text_config") or config
    count = int(text.get("num_hidden_layers", 0))
    if not 1 <= layers < count:
        raise CheckpointError(f"{source}: a student of {layers} layers, but the teacher has {count}")
    kept = np.linspace(0, count - 1, layers).round().astype(int).tolist() if layers > 1 else [0]
    text["num_hidden_layers"] = layers
    if "layer_types" in text:
        text["layer_types"] = [text["layer_types"][layer] for layer in kept]
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in sorted(file for kind in _KEPT for file in source.glob(kind)):
        if not file.name.endswith(".index.json"):
            shutil.copyfile(file, target / file.name)
    (target / "config.json").write_bytes(json_bytes(config))
    places, tensors = {layer: place for place, layer in enumerate(kept)}, {}
    for name, tensor in (pair for file in weight_files(source) for pair in load_file(file).items()):
        layer = _LAYER.search(name)
        if layer is None:
            tensors[name] = tensor
        elif int(layer[0]) in places:
            tensors[_LAYER.sub(str(places[int(layer[0])]), name, count=1)] = tensor
    save_file(tensors, target / WEIGHTS_NAME, {"format": "pt"})


def write_pairs(storage: Storage, ranked: str, output: Path, share: float) -> tuple[int, int]:
    """Write a share of a run's lists, drawn by a hash of the queries' ids, as what training reads; returns the number
    of queries and of pairs.

    Columns: `query_id`, `doc_id`, `logit`, `first_stage_rank` (null: by the score), `first_stage_score` (the logit) and
    `relevance`, 1 of the document that the teacher has ranked first.

    Raises ConfigError: there are none.
    """
    names = ["query_id", "doc_id", "rank", "logit"]
    batches = [
        batch.select(names)
        for fragment in fragments(storage, ranked, RANKED)
        for *_, batch in read_table_file(storage, fragment.file, RANKED, names)
    ]
    table = pa.Table.from_batches(batches) if batches else RANKED.empty_table().select(names)
    queries = table["query_id"].unique()
    drawn = queries.filter(pa.array((key_hash(queries) >> np.uint64(11)) < share * 2**53))
    table = table.filter(pc.is_in(table["query_id"], value_set=drawn))
    if not len(table):
        raise ConfigError([f"{ranked}: no list of the run is learnt from; see --share"])
    relevance = pa.array((table["rank"].to_numpy() == 1).astype(np.int32))
    score = table["logit"].cast(pa.float64())
    table = table.drop_columns("rank").append_column("first_stage_score", score).append_column("relevance", relevance)
    pq.write_table(table, output)
    return len(drawn), len(table)


def _stage(request: Distillation) -> TrainingStage:
    """Groups of two queries, each with four documents of its list: 16 pairs."""
    return TrainingStage(
        "distil", request.steps, max(1, request.batch // 16), 2, hard_negatives=3,
        ranking_weight=0.0, pointwise_weight=0.0, distillation_weight=1.0,
    )  # fmt: skip


def _train_decoder(request: Distillation, start: Path, pairs: str) -> None:
    """Train a student of jina-reranker-m0's kind to give the teacher's differences of logits within a list."""
    from lakerank_training.run import run_training

    limits, lake = request.teacher.limits, request.lake
    run_training(
        TrainConfig(
            lake=TrainingLakeConfig(
                documents=lake.documents, queries=lake.queries, qrels=pairs, candidates=pairs, teacher=pairs,
                columns=lake.columns.model_copy(update={"candidates": {}, "qrels": {}}), storage=lake.storage,
            ),
            start=StartConfig(path=str(start)),
            picture_side=max(56, int(limits.max_pixels**0.5) // 28 * 28),
            max_document_tokens=min(8192, limits.max_length - limits.max_query_length),
            max_query_tokens=min(512, limits.max_query_length),
            stages=(_stage(request),),
            optimizer=OptimizerConfig(
                learning_rate=request.learning_rate, warmup_steps=request.steps // 10, step_tokens=20_000
            ),
            device=request.device,
            output=str(request.output),
        )
    )  # fmt: skip


def _train_encoder(dataset: Dataset, request: Distillation, start: Path) -> None:
    """Train transformers' own network of a text cross-encoder to give the teacher's logits (mean squared error)."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    texts = [
        (dataset.queries.texts[query], dataset.documents.texts[row], logit)
        for query, logits in enumerate(dataset.teacher)
        for row, logit in logits.items()
        if dataset.queries.texts[query] and dataset.documents.texts[row]
    ]
    torch.manual_seed(0)
    random, tokenizer = np.random.default_rng(0), AutoTokenizer.from_pretrained(start)
    network = AutoModelForSequenceClassification.from_pretrained(start, num_labels=1, dtype=torch.float32)
    network.to(request.device).train()
    optimizer = adamw(dict(network.named_parameters()), weight_decay=0.01)
    schedule = Schedule([_stage(request)], request.learning_rate, request.steps // 10)
    for step in trange(request.steps, unit="step", disable=None):  # None: a bar if standard error is a terminal
        pairs = [texts[row] for row in random.integers(len(texts), size=request.batch)]
        queries, documents, logits = map(list, zip(*pairs, strict=True))
        encoded = tokenizer(
            queries, documents, truncation=True, max_length=request.teacher.limits.max_length, padding=True,
            pad_to_multiple_of=_PADDED_TO, return_tensors="pt",
        ).to(request.device)  # fmt: skip
        loss = F.mse_loss(network(**encoded).logits[:, 0], torch.tensor(logits, device=request.device))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        optimizer.step()
        optimizer.zero_grad()
    shutil.rmtree(request.output / "checkpoint", ignore_errors=True)
    shutil.copytree(start, request.output / "checkpoint")
    network.save_pretrained(request.output / "checkpoint")
