"""A whole training run, from config to checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lakerank.lake.storage import Storage, StorageOptions
from lakerank.model.prompt import LOGIT_BIAS
from lakerank.model.weights import save_checkpoint
from lakerank.training.batches import text_rows
from lakerank.training.config import SliceConfig, TrainConfig, to_yaml
from lakerank.training.encode import Encoder
from lakerank.training.evaluation import Slice
from lakerank.training.fresh import fresh_network, prompt_vocabulary
from lakerank.training.loop import Outcome, train
from lakerank.training.objective import Learner, Material
from lakerank.training.tables import Columns, TrainingLake, read_lake
from lakerank.training.tokenizer import save_tokenizer, train_tokenizer

log = logging.getLogger(__name__)


def run_training(config: TrainConfig) -> Outcome:
    """Train as configured and leave a checkpoint in `output/checkpoint`."""
    if config.threads:
        torch.set_num_threads(config.threads)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    storage = Storage(StorageOptions(**config.lake.storage.model_dump()))
    lake = _lake(config, storage, config.lake)
    tokenizer, network = start(config, lake)
    encoder = _encoder(config, tokenizer, network)
    material = _material(lake, encoder)
    slices = _slices(config, storage, encoder)
    proxies = None
    if any(stage.proxy_weight for stage in config.stages):
        proxies = nn.Linear(network.config.text_config.hidden_size, len(lake.topics), bias=False)
        nn.init.normal_(proxies.weight, std=0.02)
    learner = Learner(network, proxies, config.tap)
    log.info("%d documents, %d queries, %d topics", len(lake.documents.ids), len(lake.queries.ids), len(lake.topics))
    return train(config, learner, material, slices, LOGIT_BIAS, lambda: _publish(output, network, tokenizer))


def start(config: TrainConfig, lake: TrainingLake) -> tuple[Any, Any]:
    """Tokenizer and network to start from."""
    if config.start.shape is None:
        raise NotImplementedError
    tokenizer = train_tokenizer(text_rows(lake), config.start.shape.vocabulary)
    network = fresh_network(config.start.shape, tokenizer, config.seed)
    network.set_attn_implementation("eager")
    return tokenizer, network


def _lake(config: TrainConfig, storage: Storage, tables: Any) -> TrainingLake:
    others = {*config.lake.apart, *(name for stage in config.stages for name in stage.only)}
    if isinstance(tables, SliceConfig):
        others |= {*tables.document_only, *tables.query_only}
    columns = Columns(config.lake.topic, config.lake.kind, tuple(sorted(others)))
    return read_lake(storage, tables.documents, tables.queries, tables.qrels, columns, config.picture_side)


def _encoder(config: TrainConfig, tokenizer: Any, network: Any) -> Encoder:
    vision = network.config.vision_config
    side = config.picture_side // (vision.patch_size * vision.spatial_merge_size)
    most = (config.max_document_tokens, config.max_query_tokens)
    return Encoder(tokenizer, prompt_vocabulary(network.config), (side, side), most)


def _material(lake: TrainingLake, encoder: Encoder) -> Material:
    pixels = torch.from_numpy(lake.pixels)
    padding = encoder.vocabulary.padding
    return Material(lake, encoder.documents(lake.documents), encoder.queries(lake.queries), pixels, padding)


def _slices(config: TrainConfig, storage: Storage, encoder: Encoder) -> Mapping[str, Slice]:
    slices, read = {}, {}
    for name, part in config.evaluation.slices.items():
        only = [{key: frozenset(values) for key, values in side.items()} for side in (part.document_only, part.query_only)]
        key = (part.documents, part.queries, part.qrels)
        if key not in read:
            read[key] = _material(_lake(config, storage, part), encoder)
        slices[name] = Slice(read[key], only[0], only[1])
    return slices


def _publish(output: Path, network: Any, tokenizer: Any) -> None:
    """Save the network in bfloat16, in the published layout, beside its tokenizer."""
    folder = output / "checkpoint"
    save_checkpoint(folder, network, {})
    save_tokenizer(tokenizer, folder)
