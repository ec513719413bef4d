"""What a run starts from and what it leaves: fresh weights or a checkpoint, whole or with a LoRA adapter on top."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerFast

from lakerank.limits import Limits
from lakerank.model.checkpoint import INDEX_NAME, locate, read_json
from lakerank.model.jina_m0.config import read_settings
from lakerank.model.jina_m0.weights import JinaVLForRanking, load_network, save_checkpoint
from lakerank.training.config import LoraConfig as LoraSettings
from lakerank.training.config import StartConfig, TrainConfig
from lakerank.training.encode import Vocabulary, prompt_vocabulary
from lakerank.training.fresh import fresh_network
from lakerank.training.objective import DEVIATION, MEAN
from lakerank.training.tokenizer import save_tokenizer, train_tokenizer

#: Every projection of the language model's layers; nothing of the vision encoder matches (jina-reranker-m0's recipe).
LORA_TARGETS = r"(?:.*\.)?language_model\.layers\.\d+\.(?:self_attn\.(?:q|k|v|o)_proj|mlp\.(?:gate|up|down)_proj)"

#: Files of a checkpoint that belong to its weights; all others of these kinds go with its tokenizer or its `auto_map`.
_OF_WEIGHTS = frozenset({"config.json", INDEX_NAME})
_KEPT = ("*.json", "*.txt", "*.py")

#: Keys of config.json by which other programs choose the class that reads a checkpoint.
_CLASSES = ("architectures", "auto_map")


@dataclass(frozen=True)
class Start:
    """A network that takes gradients, its tokenizer, and the adapter around it where only that is trained."""

    network: Any
    tokenizer: PreTrainedTokenizerFast
    vocabulary: Vocabulary
    logit_bias: float
    score_token_id: int
    source: Path | None = None  # the checkpoint's folder
    adapter: Any = None

    def save(self, output: Path) -> None:
        """Write `adapter`, as peft does, or `checkpoint`: the whole in the published layout, in bfloat16."""
        if self.adapter is not None:
            # told not to save embeddings, peft does not look for the base checkpoint's config on the network
            self.adapter.save_pretrained(output / "adapter", save_embedding_layers=False)
        else:
            self._save_checkpoint(output / "checkpoint", copy.deepcopy(self.network).to(torch.bfloat16))

    def merge(self, output: Path) -> None:
        """Write `checkpoint`: the one that training started from with the saved adapter in it, in float32 as it was
        trained; in a coarser type small changes would be rounded away.
        """
        if self.source is None:
            raise ValueError("an adapter has a checkpoint")
        network = load_network(self.source, read_settings(self.source, "float32"), "cpu", str(output / "adapter"))
        self._save_checkpoint(output / "checkpoint", network)

    def _save_checkpoint(self, folder: Path, network: JinaVLForRanking) -> None:
        extra = {"logit_bias": self.logit_bias, "score_token_id": self.score_token_id}
        if self.source is not None:
            base = read_json(self.source / "config.json")
            save_checkpoint(folder, network, extra | {key: base[key] for key in _CLASSES if key in base})
            for file in sorted(file for kind in _KEPT for file in self.source.glob(kind)):
                if file.name not in _OF_WEIGHTS:
                    shutil.copyfile(file, folder / file.name)
            return
        save_checkpoint(folder, network, extra)
        save_tokenizer(self.tokenizer, folder)
        vision = self.network.config.vision_config
        preprocessor = {
            "image_processor_type": "Qwen2VLImageProcessor",
            "image_mean": list(MEAN),
            "image_std": list(DEVIATION),
            "patch_size": vision.patch_size,
            "merge_size": vision.spatial_merge_size,
            "temporal_patch_size": vision.temporal_patch_size,
            "min_pixels": Limits().min_pixels,
            "max_pixels": Limits().max_pixels,
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n", encoding="utf-8")


def begin(config: TrainConfig, texts: list[str], logit_bias: float, score_token_id: int) -> Start:
    """Make a network and its tokenizer from `texts`, or load both.

    Raises:
        CheckpointError: the checkpoint to start from cannot be loaded as it stands.
    """
    source = None
    if config.start.shape is not None:
        tokenizer = train_tokenizer(texts, config.start.shape.vocabulary)
        network = fresh_network(config.start.shape, tokenizer, config.seed, config.tap)
    else:
        source = locate(str(config.start.path), config.start.revision)
        settings = read_settings(source, "float32")
        logit_bias, score_token_id = settings.logit_bias, settings.score_token_id
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(source / "tokenizer.json"))
        network = load_network(source, settings, torch.device("cpu"), None).requires_grad_(True)
    network.set_attn_implementation("eager")  # the forward pass's masks are additive floats
    vocabulary = prompt_vocabulary(network.config, score_token_id)
    adapter = adapt(network, config.lora, config.seed, config.start) if config.mode == "lora" else None
    return Start(network, tokenizer, vocabulary, logit_bias, score_token_id, source, adapter)


def adapt(network: JinaVLForRanking, settings: LoraSettings, seed: int, base: StartConfig) -> Any:
    """Put low-rank factors beside the language model's projections and freeze all else but the score head, in place."""
    torch.manual_seed(seed)
    network.name_or_path = base.path  # what the adapter says it was made for
    recipe = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=LORA_TARGETS,
        modules_to_save=["score"],
        revision=base.revision,
    )
    with warnings.catch_warnings():  # peft asks for a property that transformers is renaming
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(network, recipe)
