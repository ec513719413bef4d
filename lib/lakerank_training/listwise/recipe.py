"""The recipe `listwise` as `lakerank_training.run` takes one."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from lakerank.limits import Limits
from lakerank.model.checkpoint import EMBEDDED
from lakerank.model.generative.tokenize import vision_tokens
from lakerank.model.jina_m0.config import read_settings
from lakerank.model.jina_m0.tokenize import read_special_tokens
from lakerank.model.listwise.config import JINA_V3, read_prompt
from lakerank.model.listwise.tokenize import ListTokenizer
from lakerank.model.preprocess.images import PatchShape
from lakerank.model.preprocess.tokenizer import read_tokenizer
from lakerank.model.registry import CheckpointIdentity
from lakerank_training.dataset import Dataset
from lakerank_training.inputs import Augment
from lakerank_training.listwise.config import ListwiseConfig
from lakerank_training.listwise.initialise import initialise as initialise_network
from lakerank_training.listwise.network import ListNetwork, write_tokenizer
from lakerank_training.listwise.objective import ListObjective, usable_queries
from lakerank_training.losses import RankingObjective
from lakerank_training.model import PairNetwork, TrainableModel
from lakerank_training.step import MakeOptimizer, adamw

#: Of config.json, as transformers names them.
_STATED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim",
    "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "hidden_act",
    "attention_bias",
)  # fmt: skip


def augment(config: ListwiseConfig) -> Augment | None:
    """Texts are not changed."""
    return None


def initialise(config: ListwiseConfig, dataset: Dataset) -> TrainableModel:
    """A network of the config's shape, which knows the bundled checkpoint's tokens."""
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        tokenizer = read_tokenizer(Path(folder) / "tokenizer.json")
    network = initialise_network(config.start.shape, tokenizer, config.seed)
    special = read_special_tokens(EMBEDDED, read_settings(EMBEDDED, "float32"))
    published = published_config(network)
    return TrainableModel(network, tokenizer, special, PatchShape(), 0.0, published, save_beside=write_tokenizer)


def published_config(network: ListNetwork) -> dict[str, Any]:
    """config.json as jina-reranker-v3's."""
    return {
        "architectures": ["JinaForRanking"],
        "auto_map": {"AutoModel": "modeling.JinaForRanking"},
        "model_type": "qwen3",
        "rope_theta": network.config.rope_parameters["rope_theta"],
        "use_sliding_window": False,
        **{name: getattr(network.config, name) for name in _STATED},
    }


def objective(config: ListwiseConfig, ranking: RankingObjective, model: TrainableModel) -> ListObjective:
    """ListNet over lists, and over lists of one."""
    return ListObjective(
        ranking, list_tokenizer(config.max_query_tokens, config.max_document_tokens), config.temperature
    )


def list_tokenizer(query_tokens: int, document_tokens: int) -> ListTokenizer:
    """As scoring encodes lists, texts cut to so many tokens."""
    limits = Limits(max_query_length=query_tokens)
    lengths = CheckpointIdentity("", "", 0.0, 0, family=JINA_V3, limits=limits, document_tokens=document_tokens)
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        prompt = read_prompt(Path(folder), {}, JINA_V3)
        vision = vision_tokens({}, prompt.document, PatchShape().merge)
        return ListTokenizer(Path(folder) / "tokenizer.json", prompt, vision, lengths)


def optimizer(config: ListwiseConfig) -> MakeOptimizer:
    """AdamW."""
    return adamw


def faults(config: ListwiseConfig, dataset: Dataset, network: PairNetwork) -> list[str]:
    """Stages that ask for longer lists than there are."""
    return [
        f"stages: {stage.name}: a step needs {stage.groups} queries with a relevant document among "
        f"{stage.documents} candidates or more, the lake has {available}"
        for stage in config.stages
        if (available := len(usable_queries(dataset, stage.documents))) < stage.groups
    ]
