"""The forward pass of training is the scoring model's, and sharing a document's prefix changes no gradient."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from lakerank.model.jina_m0.weights import JinaVLForRanking
from lakerank.records import Document, Query
from lakerank_benchmark.checkpoints import SHAPES
from lakerank_pictograms.network import network_config
from lakerank_training.config import load_train_config
from lakerank_training.dataset import Rows
from lakerank_training.model import Lora, PairNetwork, adapt, load_model
from lakerank_training.run import RunInputs, read_inputs
from oracles.reference import reference_logits


@pytest.fixture
def inputs(training_config: Callable[..., Path]) -> RunInputs:
    return read_inputs(load_train_config(training_config()))


#: Two images and two texts on either side, and every pair of them.
ROWS: tuple[Rows, Rows] = (np.array([0, 2, 6, 13]), np.array([1, 3, 5, 14]))
PAIRS = (torch.arange(4).repeat_interleave(4), torch.arange(4).repeat(4))


def test_logits_are_the_published_loop_s(inputs: RunInputs, colour_lake: Path, tiny_checkpoint: Path) -> None:
    with torch.no_grad():
        logits = PairNetwork(inputs.model.network).logits(inputs.data, ROWS, PAIRS)
    images, texts = encoded_images(colour_lake / "documents.parquet"), inputs.data.dataset.documents.texts
    pairs = [(int(ROWS[0][d]), int(ROWS[1][q])) for d, q in zip(*(places.tolist() for places in PAIRS), strict=True)]
    asked = [(Query("q", texts[q], images[q]), Document("d", texts[d], images[d])) for d, q in pairs]
    np.testing.assert_allclose(logits.numpy(), reference_logits(str(tiny_checkpoint), asked), atol=1e-4)


def test_images_of_other_sizes_and_long_texts_are_the_published_loop_s(
    training_config: Callable[..., Path], tiny_checkpoint: Path, plain_lake: dict[str, str]
) -> None:
    changes = {"lake": plain_lake, "picture_side": 84, "max_document_tokens": 4000, "evaluation": {"slices": {}}}
    stages = [{"name": "pairs", "steps": 1, "groups": 1, "group_size": 2}]
    inputs = read_inputs(load_train_config(training_config(stages=stages, **changes)))
    documents, queries, pairs = np.array([0, 1, 2, 12, 3]), np.array([0]), (torch.arange(5), torch.zeros(5).long())
    with torch.no_grad():
        logits = PairNetwork(inputs.model.network).logits(inputs.data, (documents, queries), pairs)
    images, dataset = encoded_images(Path(plain_lake["documents"])), inputs.data.dataset
    query = Query("q", dataset.queries.texts[0])
    asked = [(query, Document("d", dataset.documents.texts[row], images[row])) for row in documents]
    np.testing.assert_allclose(logits.numpy(), reference_logits(str(tiny_checkpoint), asked), atol=1e-4)


def encoded_images(documents: Path) -> list[Any]:
    images: list[Any] = pq.read_table(documents).column("image").to_pylist()
    return images


def test_sharing_prefixes_changes_no_gradient(inputs: RunInputs) -> None:
    network = inputs.model.network.double()
    model = PairNetwork(network)
    weights = torch.linspace(-1, 1, len(PAIRS[0]), dtype=torch.float64)

    def gradients(run: Callable[[], None]) -> dict[str, torch.Tensor]:
        network.zero_grad(set_to_none=True)
        run()
        return {name: value.grad.clone() for name, value in network.named_parameters() if value.grad is not None}

    def together() -> None:
        (model.logits(inputs.data, ROWS, PAIRS) * weights).sum().backward()  # type: ignore[no-untyped-call]

    def one_by_one() -> None:
        for weight, d, q in zip(weights, *PAIRS, strict=True):
            rows, first = (ROWS[0][d : d + 1], ROWS[1][q : q + 1]), torch.zeros(1, dtype=torch.long)
            (model.logits(inputs.data, rows, (first, first)) * weight).sum().backward()  # type: ignore[no-untyped-call]

    shared, alone = gradients(together), gradients(one_by_one)
    assert shared.keys() == alone.keys()
    assert "model.visual.patch_embed.proj.weight" in shared
    for name, gradient in shared.items():
        torch.testing.assert_close(gradient, alone[name], atol=1e-5, rtol=1e-4, msg=name)


LAYERS = {f"self_attn.{x}_proj" for x in "qkvo"} | {f"mlp.{x}_proj" for x in ("gate", "up", "down")}


def test_lora_touches_only_projections_and_the_score_head(tiny_checkpoint: Path) -> None:
    network = load_model(str(tiny_checkpoint)).network
    adapt(network, Lora(rank=4, alpha=8), 0, str(tiny_checkpoint))
    trained = {name for name, value in network.named_parameters() if value.requires_grad}
    expected = {
        f"model.language_model.layers.{layer}.{module}.lora_{side}.default.weight"
        for layer in range(2)
        for module in LAYERS
        for side in "AB"
    }
    expected |= {f"score.modules_to_save.default.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")}
    assert trained == expected


def test_lora_on_eighty_million_parameters_trains_the_factors_and_the_score_head_alone() -> None:
    shape = SHAPES["random-80m"]
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    tokens = {name: 100 + place for place, name in enumerate(names)}
    with torch.device("meta"):
        network: Any = JinaVLForRanking(network_config(shape, tokens, None))
        whole = sum(value.numel() for value in network.parameters())
        adapt(network, Lora(rank=16), 0, "embedded")
    assert whole == 87_353_473
    counts = {name: value.numel() for name, value in network.named_parameters() if value.requires_grad}
    hidden, inner, heads = 640, 1792, 128  # keys and values have two heads of 64
    sizes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden, heads),
        "self_attn.v_proj": (hidden, heads),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }
    expected = {
        f"model.language_model.layers.{layer}.{module}.lora_{side}.default.weight": 16 * width
        for layer in range(13)
        for module, widths in sizes.items()
        for side, width in zip("AB", widths, strict=True)
    }
    head = {"0.weight": hidden * hidden, "0.bias": hidden, "2.weight": hidden, "2.bias": 1}
    expected |= {f"score.modules_to_save.default.{name}": count for name, count in head.items()}
    assert counts == expected
    assert sum(counts.values()) == 2_369_536 + 410_881  # factors, head
    assert not [name for name in counts if "visual" in name]  # encoder and projector (visual.merger)
