"""The curriculum as `lakerank_training.run` takes a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import nn

from lakerank.lake.storage import Storage
from lakerank.lake.tables import fragments, read_table_file
from lakerank.model.jina_m0.config import DOCUMENT, QUERY
from lakerank.model.preprocess.tokenizer import TextTokenizer
from lakerank_pictograms.curriculum.augment import augment_all
from lakerank_pictograms.curriculum.config import CurriculumConfig
from lakerank_pictograms.curriculum.initialise import initialise_model, is_hidden_matrix
from lakerank_pictograms.curriculum.objective import Apart, CurriculumObjective, TemplateTokens
from lakerank_training.dataset import Dataset
from lakerank_training.inputs import Augment
from lakerank_training.losses import RankingObjective
from lakerank_training.model import PairNetwork, TrainableModel
from lakerank_training.step import MakeOptimizer, Optimizer, adamw


def augment(config: CurriculumConfig) -> Augment | None:
    """Random changes, where the config asks for them."""
    return augment_all if config.augment else None


def initialise(config: CurriculumConfig, dataset: Dataset) -> TrainableModel:
    """A model of the config's shape, its tokenizer trained on every distinct text, in order."""
    if config.start.shape is None:
        raise ValueError("a config without a path has a shape")
    texts = dict.fromkeys(text for text in (*dataset.documents.texts, *dataset.queries.texts) if text)
    return initialise_model(config.start.shape, texts, config.seed, config.tap)


def objective(config: CurriculumConfig, ranking: RankingObjective, model: TrainableModel) -> CurriculumObjective:
    """Ranking, and the losses of the curriculum's stages."""
    proxies = None
    if any(stage.proxy_weight for stage in config.stages):
        torch.manual_seed(config.seed)
        width = model.network.config.text_config.hidden_size
        proxies = nn.Linear(width, len(ranking.data.dataset.topics), bias=False)
        nn.init.normal_(proxies.weight, std=0.02)
        proxies.to(ranking.network.device)
    trainable = ranking.parameters()
    if proxies is not None:
        trainable |= {f"proxies.{name}": value for name, value in proxies.named_parameters()}
    text = TextTokenizer(model.tokenizer)
    template = TemplateTokens(*(len(text.encode(part)) for part in (DOCUMENT.prefix, DOCUMENT.suffix, QUERY.prefix)))
    return CurriculumObjective(
        ranking, proxies, config.tap, template, trainable, read_apart(config, ranking.data.dataset)
    )


def read_apart(config: CurriculumConfig, dataset: Dataset) -> Apart:
    """Rows of a dataset that are kept apart from images."""
    columns, storage = config.lake.apart, Storage(config.lake.storage)

    def marks(uri: str, id_name: str, ids: Sequence[str]) -> npt.NDArray[np.bool_]:
        schema = pa.schema([pa.field(id_name, pa.string(), False), *(pa.field(name, pa.string()) for name in columns)])
        marked: set[str] = set()
        for fragment in fragments(storage, uri, schema):
            for *_, batch in read_table_file(storage, fragment.file, schema):
                rows = batch.to_pylist()
                marked |= {row[id_name] for row in rows if any(row[name] in columns[name] for name in columns)}
        return np.array([item_id in marked for item_id in ids], dtype=bool)

    return Apart(
        documents=marks(config.lake.documents, "doc_id", dataset.documents.ids),
        queries=marks(config.lake.queries, "query_id", dataset.queries.ids),
    )


def optimizer(config: CurriculumConfig) -> MakeOptimizer:
    """AdamW, or Muon for the matrices of hidden layers and AdamW for everything else."""
    return muon if config.optimizer.name == "muon" else adamw


class Together:
    """Two optimizers, each with parameters of its own, as one."""

    def __init__(self, one: Optimizer, other: Optimizer) -> None:
        self._parts = (one, other)
        self.param_groups = [*one.param_groups, *other.param_groups]
        self.state = other.state = one.state  # keyed by parameter

    def step(self) -> None:
        """Change the parameters of both."""
        for part in self._parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of both."""
        for part in self._parts:
            part.zero_grad(set_to_none)


def muon(parameters: Mapping[str, nn.Parameter], weight_decay: float) -> Optimizer:
    """Muon changes all directions of a matrix alike (Jordan et al. 2024)."""
    hidden = {name: value for name, value in parameters.items() if is_hidden_matrix(name, value)}
    others = adamw({name: value for name, value in parameters.items() if name not in hidden}, weight_decay)
    if not hidden:
        return others
    matrices = torch.optim.Muon(
        list(hidden.values()), lr=0.0, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return Together(others, matrices)


def faults(config: CurriculumConfig, dataset: Dataset, network: PairNetwork) -> list[str]:
    """Whether the network has the layers and the size that stages need."""
    missing, layers = [], len(network.text.layers)
    if config.needs_tap and config.tap >= layers:
        missing.append(f"tap: {config.tap} is no layer of {layers}, counted from 0")
    shape, topics = config.start.shape, len(dataset.topics)
    if shape is not None and any(stage.recall for stage in config.stages) and shape.intermediate_size < topics:
        missing.append(
            f"start.shape: intermediate_size {shape.intermediate_size} is below the {topics} topics to recall"
        )
    return missing
