"""The forward pass of training is the scoring model's, and sharing a document's prefix changes no gradient."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lakerank.records import Document, Query
from lakerank.training.config import load_train_config
from lakerank.training.forward import bag_states, encode_images, patchify
from lakerank.training.learner import Learner
from lakerank.training.objective import SIMILARITY_SPREAD, Material, forward, similarities
from lakerank.training.run import read_material
from lakerank.training.sequences import pad
from lakerank.training.start import Start, begin
from oracles.reference import reference_logits

Prepared = tuple[Start, Material, Path]


@pytest.fixture
def prepared(training_config: Callable[..., Path], tiny_checkpoint: Path) -> Prepared:
    config = load_train_config(training_config(start={"path": str(tiny_checkpoint)}))
    begun = begin(config, [], 2.65, 100)
    return begun, read_material(config, begun), tiny_checkpoint


def pairs(material: Material) -> tuple[np.ndarray, np.ndarray, torch.Tensor, torch.Tensor]:
    """Two pictures and two texts on either side, every pair of them."""
    rows = np.array([0, 2, 6, 13])
    return rows, np.array([1, 3, 5, 14]), torch.arange(4).repeat_interleave(4), torch.arange(4).repeat(4)


def test_logits_are_the_published_loop_s(prepared: Prepared, colour_lake: Path) -> None:
    begun, material, checkpoint = prepared
    documents, queries, first, second = pairs(material)
    with torch.no_grad():
        got = forward(Learner(begun.network, None, 1), material, documents, queries, first, second).logits
    texts, pixels = material.lake.documents.texts, material.lake.documents.pictures
    encoded = encoded_images(colour_lake)
    wanted = [
        (
            Query("q", texts[queries[q]], encoded[queries[q]] if pixels[queries[q]] >= 0 else None),
            Document("d", texts[documents[d]], encoded[documents[d]] if pixels[documents[d]] >= 0 else None),
        )
        for d, q in zip(first.tolist(), second.tolist(), strict=True)
    ]
    assert got is not None
    np.testing.assert_allclose(got.numpy(), reference_logits(str(checkpoint), wanted), atol=1e-4)


def test_pictures_of_other_sizes_and_long_texts_are_the_published_loop_s(
    training_config: Callable[..., Path], tiny_checkpoint: Path, plain_lake: dict[str, str]
) -> None:
    changes = {"lake": plain_lake, "picture_side": 84, "max_document_tokens": 4000}
    stages = [{"name": "pairs", "steps": 1, "groups": 1, "group_size": 2}]
    config = load_train_config(training_config(start={"path": str(tiny_checkpoint)}, stages=stages, **changes))
    begun = begin(config, [], 2.65, 100)
    material = read_material(config, begun)
    documents, queries, repeated = np.array([0, 1, 2, 12, 3]), np.array([0]), torch.zeros(5, dtype=torch.long)
    with torch.no_grad():
        got = forward(Learner(begun.network, None, 1), material, documents, queries, torch.arange(5), repeated).logits
    images, lake = encoded_images(Path(plain_lake["documents"]).parent), material.lake
    query = Query("q", lake.queries.texts[0])
    wanted = [(query, Document("d", lake.documents.texts[row], images[row])) for row in documents]
    assert got is not None
    np.testing.assert_allclose(got.numpy(), reference_logits(str(tiny_checkpoint), wanted), atol=1e-4)


def encoded_images(folder: Path) -> list[Any]:
    import pyarrow.parquet as pq

    column: list[Any] = pq.read_table(folder / "documents.parquet").column("image").to_pylist()
    return column


def test_a_bag_is_the_mean_of_a_row_s_own_tokens(prepared: Prepared) -> None:
    begun, material, _ = prepared
    text = begun.network.model.language_model
    row, picture = 2, 0
    with torch.no_grad():
        text.layers[0].input_layernorm.weight.normal_()
        sides = [pad([material.documents[some], material.documents[other]], 0) for some, other in ((row, 3), (row, 4))]
        (documents, queries) = bag_states(begun.network, *sides, None)
        ids = begun.tokenizer(material.lake.documents.texts[row], add_special_tokens=False)["input_ids"]
        embedded = text.layers[0].input_layernorm(text.embed_tokens(torch.tensor(ids)))
        torch.testing.assert_close(documents[0], embedded.mean(0))
        torch.testing.assert_close(queries[0], documents[0])  # whatever it is padded beside
        visual = torch.randn(4, embedded.shape[1])
        (drawn, _) = bag_states(begun.network, pad([material.documents[picture]], 0), sides[0], visual)
        start, end = begun.network.config.vision_start_token_id, begun.network.config.vision_end_token_id
        around = text.embed_tokens(torch.tensor([start, end]))
        whole = text.layers[0].input_layernorm(torch.cat([visual, around]))
    torch.testing.assert_close(drawn[0], whole.mean(0))


def test_sharing_prefixes_changes_no_gradient(prepared: Prepared) -> None:
    begun, material, _ = prepared
    network = begun.network.double()
    learner = Learner(network, None, 1)
    documents, queries, first, second = pairs(material)
    weights = torch.linspace(-1, 1, len(first), dtype=torch.float64)

    def gradients(run: Callable[[], None]) -> dict[str, torch.Tensor]:
        network.zero_grad(set_to_none=True)
        run()
        return {name: value.grad.clone() for name, value in network.named_parameters() if value.grad is not None}

    def together() -> None:
        logits = forward(learner, material, documents, queries, first, second).logits
        assert logits is not None
        (logits * weights).sum().backward()  # type: ignore[no-untyped-call]

    def one_by_one() -> None:
        for index, (d, q) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
            one = torch.zeros(1, dtype=torch.long)
            logits = forward(learner, material, documents[d : d + 1], queries[q : q + 1], one, one).logits
            assert logits is not None
            (logits * weights[index]).sum().backward()  # type: ignore[no-untyped-call]

    shared, alone = gradients(together), gradients(one_by_one)
    assert shared.keys() == alone.keys()
    assert "model.visual.patch_embed.proj.weight" in shared
    for name, gradient in shared.items():
        torch.testing.assert_close(gradient, alone[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("tap", [0, 1])
def test_similarities_are_log_odds_of_the_tap_s_own_attention(prepared: Prepared, tap: int) -> None:
    """Of the weights that the layer itself gives: a document's end, against all of the query's own tokens."""
    begun, material, _ = prepared
    learner = Learner(begun.network, None, tap)
    documents, queries, first, second = pairs(material)
    attention = begun.network.model.language_model.layers[tap].self_attn
    for bias in (attention.q_proj.bias, attention.k_proj.bias):
        torch.nn.init.normal_(bias, std=3.0, generator=torch.Generator().manual_seed(0))  # so that places matter
    seen: list[torch.Tensor] = []
    hook = attention.register_forward_hook(lambda _module, _arguments, output: seen.append(output[1]))
    with torch.no_grad():
        states = forward(learner, material, documents, queries, first, second)
        hook.remove()
        of_documents, of_pairs = seen  # the second: (P, heads, S, L + S)
        for d in range(len(documents)):
            own = torch.arange(len(queries)) + d * len(queries)  # each query behind document d, where it really stands
            got = similarities(learner, states, own)[d]
            end, prefix = len(material.documents[documents[d]].ids) - 1, of_documents.shape[-1]
            for q, pair in enumerate(own.tolist()):
                last = len(material.queries[queries[q]].ids) - 1
                weights = of_pairs[pair, :, last]  # (heads, L + S)
                odds = weights[:, end].log() - weights[:, prefix : prefix + last + 1].sum(-1).log()
                wanted = odds.sum() / (SIMILARITY_SPREAD * len(odds)) ** 0.5
                torch.testing.assert_close(got[q], wanted, atol=1e-4, rtol=1e-4)


def test_pictures_in_one_batch_are_the_vision_encoder_s(prepared: Prepared) -> None:
    vision = prepared[0].network.model.visual
    pixels = torch.randn(2, 3, 56, 84, generator=torch.Generator().manual_seed(0))
    patches = patchify(pixels, 14, 2).reshape(-1, 3, 1, 196).expand(-1, -1, 2, -1).flatten(1)
    with torch.no_grad():
        expected = vision(patches, grid_thw=torch.tensor([[1, 4, 6]] * 2)).pooler_output
        torch.testing.assert_close(encode_images(vision, pixels), expected, atol=1e-5, rtol=1e-4)
