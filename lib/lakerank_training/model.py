"""The network that is trained: loaded, adapted, run over pairs with gradients, and saved."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Lt
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.vision_utils import get_vision_position_ids

from lakerank.model.checkpoint import INDEX_NAME, locate
from lakerank.model.engine.elementwise.plain import RotaryTable, rotate
from lakerank.model.engine.vision import patch_rotation
from lakerank.model.jina_m0.config import read_settings
from lakerank.model.jina_m0.tokenize import SpecialTokens, read_special_tokens
from lakerank.model.jina_m0.weights import JinaVLForRanking, load_network
from lakerank.model.preprocess.images import PatchShape
from lakerank.model.preprocess.tokenizer import read_tokenizer
from lakerank_training.dataset import Rows
from lakerank_training.inputs import Augment, EncodedDataset, ImageBatch, PaddedInputs, image_batches, pad
from lakerank_training.weights import save_checkpoint

#: Every projection of the language model's layers; nothing of the vision encoder matches (jina-reranker-m0's recipe).
LORA_TARGETS = r"(?:.*\.)?language_model\.layers\.\d+\.(?:self_attn\.(?:q|k|v|o)_proj|mlp\.(?:gate|up|down)_proj)"

#: Files of a checkpoint that belong to its weights; all others of these kinds go with its tokenizer or its `auto_map`.
_OF_WEIGHTS = frozenset({"config.json", INDEX_NAME})
_KEPT = ("*.json", "*.txt", "*.py")


@dataclass(frozen=True)
class TrainableModel:
    """A network that takes gradients and what encodes its inputs; `adapter`: what is trained around it, if not all is.

    `config`: what its config.json says, but for the type of the weights and what is trained.
    `source`: the folder of the checkpoint it was loaded from. One initialised from scratch has none, and `save_beside`
    writes what belongs beside its weights into a folder.
    """

    network: Any
    tokenizer: Tokenizer
    special: SpecialTokens
    patches: PatchShape
    logit_bias: float
    config: Mapping[str, Any]
    source: Path | None = None
    adapter: Any = None
    save_beside: Callable[[Path], None] | None = None

    def save(self, output: Path) -> None:
        """Write `adapter`, as peft does, or `checkpoint`: the whole in the published layout, in bfloat16."""
        if self.adapter is not None:
            # Without saving embeddings, peft does not look for the base checkpoint's config on the network.
            self.adapter.save_pretrained(output / "adapter", save_embedding_layers=False)
        else:
            self.save_whole(output / "checkpoint", copy.deepcopy(self.network).to(torch.bfloat16))

    def merge(self, output: Path) -> None:
        """Write `checkpoint`: the one that training started from with the saved adapter in it, in float32 as it was
        trained; in a coarser type small changes would be rounded away.
        """
        if self.source is None:
            raise ValueError("an adapter has a checkpoint")
        network = load_network(self.source, read_settings(self.source, "float32"), "cpu", str(output / "adapter"))
        self.save_whole(output / "checkpoint", network)

    def save_whole(self, folder: Path, network: JinaVLForRanking) -> None:
        """Write a network in the published layout, with its source's tokenizer and code where it has a source."""
        scores = {"logit_bias": self.logit_bias, "score_token_id": self.special.score}
        save_checkpoint(folder, network, {**self.config, **scores})
        if self.save_beside is not None:
            self.save_beside(folder)
        for file in sorted(file for kind in _KEPT for file in self.source.glob(kind)) if self.source else ():
            if file.name not in _OF_WEIGHTS:
                shutil.copyfile(file, folder / file.name)


def load_model(path: str, revision: str | None = None) -> TrainableModel:
    """Load a checkpoint in float32, everything in it to be trained.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
    """
    source = locate(path, revision)
    settings = read_settings(source, "float32")
    network = load_network(source, settings, torch.device("cpu"), None).requires_grad_(True)
    network.set_attn_implementation("eager")  # the masks of `PairForward` are additive floats
    tokenizer, special = read_tokenizer(source / "tokenizer.json"), read_special_tokens(source, settings)
    config = {key: value for key, value in settings.config.items() if key != "dtype"}  # newer for torch_dtype
    return TrainableModel(network, tokenizer, special, settings.patches, settings.logit_bias, config, source)


@dataclass(frozen=True)
class Lora:
    """Low-rank adaptation (Hu et al. 2021): factors of `rank`, whose product counts `alpha` / `rank` times.

    `merge`: also leave a whole checkpoint with the adapter merged into it, in float32.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    rank: Annotated[int, Ge(1)] = 16
    alpha: Annotated[float, Gt(0)] = 32
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    merge: bool = False


def adapt(network: JinaVLForRanking, lora: Lora, seed: int, path: str | None, revision: str | None = None) -> Any:
    """Put low-rank factors beside the language model's projections and freeze all else but the score head, in place.

    `path` and `revision`: the base checkpoint that the adapter names.
    """
    torch.manual_seed(seed)
    network.name_or_path = path
    recipe = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout,
        target_modules=LORA_TARGETS, modules_to_save=["score"], revision=revision,
    )  # fmt: skip
    with warnings.catch_warnings():  # peft asks for a property that transformers is renaming
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(network, recipe)


@dataclass(frozen=True)
class PairInputs:
    """Documents (D) and queries (Q) that are paired, and the merged visual tokens (T, H) of their images, in order."""

    documents: PaddedInputs
    queries: PaddedInputs
    visual: Tensor | None


@dataclass(frozen=True)
class PairNetwork:
    """A network as it is run over pairs. `checkpointing` keeps the states between layers alone and computes what is
    inside them again for the gradients (Chen et al. 2016). `augment` changes the images that it is trained on.
    """

    network: Any
    checkpointing: bool = False
    augment: Augment | None = None

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return torch.device(next(self.network.parameters()).device)

    @property
    def text(self) -> Any:
        """The language model."""
        return self.network.model.language_model

    def inputs(self, data: EncodedDataset, documents: Rows, queries: Rows) -> PairInputs:
        """Rows of the dataset as tensors."""
        prefixes = pad([data.documents[row] for row in documents]).to(self.device)
        suffixes = pad([data.queries[row] for row in queries]).to(self.device)
        images = [*data.dataset.documents.images[documents].tolist(), *data.dataset.queries.images[queries].tolist()]
        images = [image for image in images if image >= 0]
        return PairInputs(prefixes, suffixes, self.visual_tokens(data, images) if images else None)

    def visual_tokens(self, data: EncodedDataset, images: Sequence[int]) -> Tensor:
        """Merged visual tokens (T, H) of images, in their order."""
        tokens: dict[int, Tensor] = {}
        for batch in image_batches(data, images, self.augment if self.network.training else None):
            tokens |= zip(batch.places, self._encode_images(batch).chunk(len(batch.places)), strict=True)
        return torch.cat([tokens[place] for place in range(len(images))])

    def _encode_images(self, batch: ImageBatch) -> Tensor:
        """Merged visual tokens (N·T, H). Transformers' encoder attends image by image on a CPU; here in one batch."""
        vision = self.network.model.visual
        weight = vision.patch_embed.proj.weight.sum(2).flatten(1)  # still images repeat: one time step counts for all
        hidden = nn.functional.linear(batch.values.to(weight.device, weight.dtype), weight)  # (N, P, E)
        rotary = vision.rotary_pos_emb
        table = RotaryTable(rotary.inv_freq, rotary.attention_scaling, torch.float32)
        places = get_vision_position_ids(torch.tensor([[1, *batch.grid]]), vision.config.spatial_merge_size)
        rotation = patch_rotation(table, places, hidden.device)

        def block_forward(block: Any, hidden: Tensor) -> Tensor:
            hidden = hidden + _image_attention(block.attn, block.norm1(hidden), rotation)
            mixed: Tensor = hidden + block.mlp(block.norm2(hidden))
            return mixed

        for block in vision.blocks:
            hidden = self.run(block_forward, block, hidden)
        merged: Tensor = vision.merger(hidden.flatten(0, 1))
        return merged

    def run(self, function: Any, *arguments: Any) -> Any:
        """Call; with `checkpointing`, keep the arguments alone."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(function, *arguments, use_reentrant=False)
        return function(*arguments)

    def embed(self, inputs: PairInputs) -> tuple[Tensor, Tensor]:
        """Token embeddings (D, L, H) and (Q, S, H), visual tokens put in their places."""
        prefixes, suffixes = (self.text.embed_tokens(part.ids) for part in (inputs.documents, inputs.queries))
        if inputs.visual is None:
            return prefixes, suffixes
        image = self.network.config.image_token_id
        masks = [(part.ids == image).unsqueeze(-1) for part in (inputs.documents, inputs.queries)]  # (B, L, 1)
        visual = torch.split(inputs.visual.to(prefixes.dtype), [int(mask.sum()) for mask in masks])
        return prefixes.masked_scatter(masks[0], visual[0]), suffixes.masked_scatter(masks[1], visual[1])

    def logits(self, data: EncodedDataset, rows: tuple[Rows, Rows], pairs: tuple[Tensor, Tensor]) -> Tensor:
        """Logits (P,) of pairs of documents and queries: (D,) and (Q,) rows of the dataset, and (P,) places in them."""
        forward = PairForward(self, self.inputs(data, *rows), *pairs)
        forward.through(self.text.layers)
        return forward.logits()


class PairForward:
    """Documents' prefixes and pairs' suffixes on their way through the layers: each prefix is computed once."""

    def __init__(self, model: PairNetwork, inputs: PairInputs, pair_documents: Tensor, pair_queries: Tensor) -> None:
        """Embed. Pair i is (`pair_documents[i]`, `pair_queries[i]`)."""
        self._model, self.documents = model, inputs.documents
        self._pair_documents, pair_queries = pair_documents.to(model.device), pair_queries.to(model.device)
        self.prefix, queries = model.embed(inputs)  # (D, L, H)
        self.hidden = queries[pair_queries]  # (P, S, H)
        rotary = model.text.rotary_emb
        self._prefix_mask = causal_mask(self.prefix.shape[1], self.prefix)
        self._prefix_rotary = rotary(self.prefix, inputs.documents.positions)
        starts = inputs.documents.ends[self._pair_documents]
        self.positions = inputs.queries.positions[:, pair_queries] + starts[None, :, None]  # (3, P, S)
        self._suffix_rotary = rotary(self.hidden, self.positions)
        self._suffix_mask = self._see_document_then_self()
        self.score_places = inputs.queries.lengths[pair_queries] - 1  # (P,)

    def through(self, layers: Sequence[Any]) -> None:
        """Go through these layers."""
        for layer in layers:
            self.prefix, self.hidden = self._model.run(self._layer, layer, self.prefix, self.hidden)

    @property
    def score_states(self) -> Tensor:
        """(P, H) at each pair's score token."""
        return self.hidden[torch.arange(len(self.score_places), device=self.hidden.device), self.score_places]

    def logits(self) -> Tensor:
        """(P,) float32, after the last layer."""
        logits: Tensor = self._model.network.score(self._model.text.norm(self.score_states)).float().squeeze(-1)
        return logits

    def _layer(self, layer: Any, prefix: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        cache = PrefixCache(self._pair_documents)
        prefix = layer(
            prefix, attention_mask=self._prefix_mask, position_embeddings=self._prefix_rotary, past_key_values=cache
        )
        hidden = layer(
            hidden, attention_mask=self._suffix_mask, position_embeddings=self._suffix_rotary, past_key_values=cache
        )
        return prefix, hidden

    def _see_document_then_self(self) -> Tensor:
        """Additive mask (P, 1, S, L + S): a query sees its document without the padding, then itself causally."""
        pairs, length = self.hidden.shape[:2]
        steps = torch.arange(self.prefix.shape[1], device=self.hidden.device)
        padding = steps[None] >= self.documents.lengths[:, None]  # (D, L)
        lowest = torch.finfo(torch.float32).min
        prefix = torch.zeros(padding.shape, device=padding.device).masked_fill(padding, lowest)[self._pair_documents]
        suffix = causal_mask(length, self.hidden).expand(pairs, 1, length, length)
        return torch.cat([prefix[:, None, None, :].expand(-1, 1, length, -1), suffix], dim=-1)


class PrefixCache:
    """Takes the place of a key–value cache: keeps a layer's keys and values of documents, then puts each pair's before
    its own. (Transformers' DynamicCache copies them first, which changes the last digits.)
    """

    def __init__(self, pair_documents: Tensor) -> None:
        self._rows, self._prefix = pair_documents, tuple[Tensor, ...]()

    def update(self, keys: Tensor, values: Tensor, layer_index: int, *_: Any) -> tuple[Tensor, ...]:
        if not self._prefix:
            self._prefix = (keys, values)
            return keys, values
        # (D, heads, L, d) -> (P, heads, L, d), then along the sequence
        both = zip(self._prefix, (keys, values), strict=True)
        return tuple(torch.cat([prefix[self._rows], suffix], dim=2) for prefix, suffix in both)


def causal_mask(length: int, like: Tensor) -> Tensor:
    """Additive mask (1, 1, L, L)."""
    mask = torch.full((length, length), torch.finfo(torch.float32).min, device=like.device)
    return mask.triu(1)[None, None]


def _image_attention(attention: Any, hidden: Tensor, rotation: Tensor) -> Tensor:
    """Full attention within each image: (N, P, E) -> (N, P, E)."""
    states = attention.qkv(hidden).unflatten(-1, (3, attention.num_heads, -1))  # (N, P, 3, heads, d)
    query, key = (rotate(states[:, :, part].float(), rotation).to(hidden.dtype).transpose(1, 2) for part in (0, 1))
    weights = (query @ key.transpose(2, 3) * attention.scaling).softmax(-1)
    value = states[:, :, 2].transpose(1, 2)
    output: Tensor = attention.proj((weights.to(value.dtype) @ value).transpose(1, 2).flatten(2))
    return output
