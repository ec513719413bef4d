"""Training encodes a row exactly as scoring does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from lakerank.limits import Limits
from lakerank.model.engine.vision import PackedVision
from lakerank.model.inputs import EncodedInput
from lakerank.model.jina_m0.config import read_settings
from lakerank.model.jina_m0.tokenize import PromptTokenizer, read_special_tokens
from lakerank.model.preprocess.images import load_patches
from lakerank.model.preprocess.tokenizer import read_tokenizer
from lakerank_training.config import load_train_config
from lakerank_training.inputs import image_batches
from lakerank_training.model import PairNetwork
from lakerank_training.run import RunInputs, read_inputs


@pytest.fixture
def inputs(training_config: Callable[..., Path], plain_lake: dict[str, str]) -> RunInputs:
    """Of a lake with images of three sizes."""
    stage = {"name": "pairs", "steps": 1, "groups": 1, "group_size": 2}
    long = {"picture_side": 84, "max_document_tokens": 4000, "max_query_tokens": 500}
    path = training_config(lake=plain_lake, stages=[stage], evaluation={"slices": {}}, **long)
    return read_inputs(load_train_config(path))


@pytest.fixture
def prompt(tiny_checkpoint: Path) -> PromptTokenizer:
    special = read_special_tokens(tiny_checkpoint, read_settings(tiny_checkpoint))
    return PromptTokenizer(read_tokenizer(tiny_checkpoint / "tokenizer.json"), special, Limits(), 2)


def test_token_ids_positions_and_patches_are_those_of_scoring(
    inputs: RunInputs, prompt: PromptTokenizer, plain_lake: dict[str, str], tiny_checkpoint: Path
) -> None:
    """Scoring's side is built here from the encoded image and text, by what its engine calls."""
    data, limits, shape = inputs.data, Limits(max_pixels=84**2), read_settings(tiny_checkpoint).patches
    encoded = {row["doc_id"]: row["image"] for row in pq.read_table(plain_lake["documents"]).to_pylist()}
    documents = data.dataset.documents
    sizes = set()
    for row, doc_id in enumerate(documents.ids):
        patches = None if documents.images[row] < 0 else load_patches(encoded[doc_id], limits, shape)
        assert_equal(data.documents[row], prompt.document(documents.texts[row], [("", patches)] if patches else []))
        if patches is not None:
            sizes.add(patches.grid)
            (batch,) = image_batches(data, [int(documents.images[row])])
            assert batch.grid == patches.grid
            mean, std = (np.array(channel).reshape(3, 1, 1) for channel in (shape.mean, shape.std))
            values = (patches.pixels / 255 - mean) / std  # (P, 3, side, side)
            np.testing.assert_allclose(batch.values[0].numpy(), values.reshape(len(values), -1), atol=1e-5)
    assert len(sizes) == 3
    for row, text in enumerate(data.dataset.queries.texts):
        assert_equal(data.queries[row], prompt.query(text))


def assert_equal(trained: EncodedInput, scored: EncodedInput) -> None:
    np.testing.assert_array_equal(trained.token_ids, scored.token_ids)
    np.testing.assert_array_equal(trained.positions, scored.positions)
    assert trained.end == scored.end


def test_visual_tokens_are_those_of_scoring_s_engine(
    inputs: RunInputs, plain_lake: dict[str, str], tiny_checkpoint: Path
) -> None:
    shape = read_settings(tiny_checkpoint).patches
    encoded = pq.read_table(plain_lake["documents"])["image"].to_pylist()[:12]
    patches = [load_patches(image, Limits(max_pixels=84**2), shape) for image in encoded]
    with torch.no_grad():
        trained = PairNetwork(inputs.model.network).visual_tokens(inputs.data, range(12))
        pixels = torch.from_numpy(np.concatenate([each.pixels for each in patches]))
        vision = PackedVision(copy.deepcopy(inputs.model.network), shape)
        scored = torch.cat(vision.tokens(pixels, [each.grid for each in patches]))
    torch.testing.assert_close(trained, scored, atol=1e-5, rtol=1e-4)


def test_rows_of_a_topic_lake_are_those_of_scoring(
    training_config: Callable[..., Path], prompt: PromptTokenizer, colour_lake: Path
) -> None:
    data = read_inputs(load_train_config(training_config())).data
    limits = Limits(max_pixels=56**2)
    encoded = pq.read_table(colour_lake / "documents.parquet")["image"].to_pylist()
    for row in (0, 1, 2, 3, 4, 27):
        text = data.dataset.documents.texts[row]
        patches = load_patches(encoded[row], limits, data.patches) if encoded[row] else None
        assert_equal(data.documents[row], prompt.document(text, [("", patches)] if patches else []))
        assert_equal(data.queries[row], prompt.query(text, [("", patches)] if patches else []))


def test_a_long_text_is_cut_and_keeps_its_end(training_config: Callable[..., Path]) -> None:
    shortened = read_inputs(load_train_config(training_config(max_document_tokens=2, max_query_tokens=2))).data
    whole = read_inputs(load_train_config(training_config())).data
    assert len(shortened.documents[2].token_ids) < len(whole.documents[2].token_ids)
    assert shortened.documents[2].token_ids[-1] == whole.documents[2].token_ids[-1]
    assert shortened.queries[2].token_ids[-1] == 100
