"""A whole training run, from config to checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lakerank.lake.storage import Storage, StorageOptions
from lakerank.model.jina_m0.prompt import LOGIT_BIAS, SCORE_TOKEN_ID
from lakerank.training.batches import text_rows
from lakerank.training.card import write_card
from lakerank.training.checks import check, said_before
from lakerank.training.config import SliceConfig, TablesConfig, TrainConfig, TrainingLakeConfig
from lakerank.training.encode import Encoder
from lakerank.training.evaluation import Slice
from lakerank.training.identity import identify_run
from lakerank.training.learner import Learner
from lakerank.training.loop import Outcome, train
from lakerank.training.objective import Material
from lakerank.training.plot import draw_progress
from lakerank.training.processes import Processes, joined
from lakerank.training.start import Start, begin
from lakerank.training.tables import Columns, Pixels, Sources, TrainingLake, read_lake

log = logging.getLogger(__name__)


def run_training(config: TrainConfig) -> Outcome:
    """Train as configured and leave a checkpoint in `output/checkpoint`, or an adapter in `output/adapter`.

    Started by torchrun or Spark's TorchDistributor, it trains together with the other processes.

    Raises:
        ConfigError: the config asks for what the lake or the network does not have.
    """
    with joined(config.device) as processes:
        return _run(config, processes)


def _run(config: TrainConfig, processes: Processes) -> Outcome:
    if config.threads:
        torch.set_num_threads(config.threads)
    output = Path(config.output)
    storage = Storage(StorageOptions(**config.lake.storage.model_dump()))
    lake = _lake(config, storage, config.lake)
    begun = begin(config, list(text_rows(lake)), LOGIT_BIAS, SCORE_TOKEN_ID)
    encoder = _encoder(config, begun)
    material = _material(lake, encoder)
    slices = _slices(config, storage, encoder, lake)
    proxies = _proxies(config, begun.network, lake.topics)
    learner = _learner(config, begun.network, proxies, processes)
    log.info("%d documents, %d queries, %d topics", len(lake.documents.ids), len(lake.queries.ids), lake.topics)
    check(config, material, slices, begun.network.config.text_config.num_hidden_layers)
    identity = identify_run(config, lake, slices, begun.source)
    outcome = train(
        config, identity, learner, material, slices, begun.logit_bias, lambda: begun.save(output), processes
    )
    if processes.first:
        if config.lora.merge:
            begun.merge(output)
        draw_progress(output / "metrics.jsonl", output / "progress.png")
        write_card(config, lake, outcome, learner)
    processes.wait()
    return outcome


def _learner(config: TrainConfig, network: Any, proxies: nn.Linear | None, processes: Processes) -> Learner:
    device = f"cuda:{processes.local_rank}" if config.device == "cuda" else config.device
    network.to(device)
    return Learner(network, None if proxies is None else proxies.to(device), config.tap, config.gradient_checkpointing)


def read_material(config: TrainConfig, begun: Start) -> Material:
    """The training lake, ready for a network."""
    storage = Storage(StorageOptions(**config.lake.storage.model_dump()))
    return _material(_lake(config, storage, config.lake), _encoder(config, begun))


def _proxies(config: TrainConfig, network: Any, topics: int) -> nn.Linear | None:
    if not any(stage.proxy_weight for stage in config.stages):
        return None
    torch.manual_seed(config.seed)
    proxies = nn.Linear(network.config.text_config.hidden_size, topics, bias=False)
    nn.init.normal_(proxies.weight, std=0.02)
    return proxies


def _lake(config: TrainConfig, storage: Storage, tables: TablesConfig, pictures: Pixels | None = None) -> TrainingLake:
    others = {*config.lake.apart, *(name for stage in config.stages for name in stage.only)}
    if isinstance(tables, SliceConfig):
        others |= {*tables.document_only, *tables.query_only}
    columns = Columns(config.lake.topic, config.lake.kind, tuple(sorted(others)))
    sources = Sources(tables.documents, tables.queries, tables.qrels)
    if isinstance(tables, TrainingLakeConfig):
        sources = replace(sources, candidates=tables.candidates, teacher=tables.teacher)
    whole = config.start.shape is not None  # a network from scratch learns its words from all texts
    return read_lake(storage, sources, columns, config.picture_side, whole=whole, pictures=pictures)


def _encoder(config: TrainConfig, begun: Start) -> Encoder:
    vision = begun.network.config.vision_config
    most = (config.max_document_tokens, config.max_query_tokens)
    return Encoder(begun.tokenizer, begun.vocabulary, vision.patch_size * vision.spatial_merge_size, most)


def _material(lake: TrainingLake, encoder: Encoder) -> Material:
    pixels = [torch.from_numpy(picture) for picture in lake.pixels]
    return Material(lake, encoder.documents(lake), encoder.queries(lake), pixels, encoder.vocabulary.padding)


def _slices(config: TrainConfig, storage: Storage, encoder: Encoder, trained: TrainingLake) -> Mapping[str, Slice]:
    slices: dict[str, Slice] = {}
    read: dict[tuple[str, str, str], tuple[Material, frozenset[int]]] = {}
    for name, part in config.evaluation.slices.items():
        documents, queries = (
            {name: frozenset(values) for name, values in only.items()} for only in (part.document_only, part.query_only)
        )
        if part.addresses not in read:
            material = _material(_lake(config, storage, part, trained.pictures), encoder)
            own = part.addresses == config.lake.addresses
            read[part.addresses] = material, frozenset() if own else said_before(material.lake, trained)
        material, twins = read[part.addresses]
        if twins:
            log.warning("slice %s: %d queries say what a query that is trained on says: left out", name, len(twins))
        slices[name] = Slice(material, documents, queries, twins)
    return slices
