"""ModernBERT, and heads as sentence-transformers writes them, against that library's own CrossEncoder."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from checkpoints import encoders
from lakerank import load_reranker
from lakerank.errors import CheckpointError
from lakerank.limits import Limits
from lakerank.model.engine.attention import varlen
from lakerank.model.engine.encoder import LayerAttention
from lakerank.model.engine.encoder_engine import EncoderEngine
from lakerank.model.spec import CheckpointSpec, confirm, identify
from lakerank.records import Document, Query
from oracles.pairs import pair_logits

LENGTH = 256
LONG = " ".join(encoders.WORDS)
QUERIES = (Query("q-short", "red apple"), Query("q-half", f"where [SEP] is {LONG * 4}"), Query("q-signs", "?! [PAD] ?"))
DOCUMENTS = (
    Document("d-short", "A red apple lies on the table."),
    Document("d-cut", " ".join([LONG] * 4)),
    Document("d-scripts", "Красное яблоко. 赤いりんご\u200b \u0301é \U0001f34e תפוח ﬁ ①"),
    *(Document(f"d-{words}", " ".join(encoders.WORDS[:words])) for words in (12, 15, 18, 31, 34, 40)),
)
PAIRS = [(query, document) for document in DOCUMENTS for query in QUERIES]

#: Layouts by name: how a checkpoint of each is written into a folder.
LAYOUTS: dict[str, Callable[[Path], Any]] = {
    "gte": lambda folder: encoders.write_modern(folder),
    "own token": lambda folder: encoders.write_modern(
        folder, classifier_pooling="cls", classifier_bias=True, local_attention=1
    ),
    "local last": lambda folder: encoders.write_modern(
        folder, classifier_pooling="cls", num_hidden_layers=3, local_attention=20
    ),
    "ettin": lambda folder: encoders.write_ettin(folder, encoders.write_modern, "cls"),
    "ettin mean": lambda folder: encoders.write_ettin(folder, encoders.write_modern, "mean"),
    "bert": lambda folder: encoders.write_ettin(folder, encoders.write_bert, "mean"),
    "xlm-roberta": lambda folder: encoders.write_ettin(folder, encoders.write_bge, "cls"),
}

#: Families of networks without a head, which their config.json does not tell.
FAMILIES = {"bert": "bert-reranker", "xlm-roberta": "bge-reranker"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {name: tmp_path_factory.mktemp(name.replace(" ", "-")) for name in LAYOUTS}
    for name, folder in made.items():
        LAYOUTS[name](folder)
    return made


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda layout: Path(shutil.copytree(folders[layout], tmp_path / "copy"))


def load(folder: Path, **options: Any) -> Any:
    return load_reranker(str(folder), device="cpu", dtype="float32", max_length=LENGTH, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_are_those_of_cross_encoder(folders: dict[str, Path], layout: str) -> None:
    """Texts around the windows' and the blocks' ends, and both ways of being cut."""
    from sentence_transformers import CrossEncoder

    library = CrossEncoder(str(folders[layout]), device="cpu", max_length=LENGTH, local_files_only=True)
    texts = [(query.text, document.text) for query, document in PAIRS]
    expected = library.predict(texts, batch_size=1, activation_fn=torch.nn.Identity(), show_progress_bar=False)
    ours = pair_logits(load(folders[layout], family=FAMILIES.get(layout)), PAIRS)
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)
    assert np.std(expected) > 0.05, "logits that differ by more than rounding"


@pytest.mark.parametrize("layout", ["gte", "own token", "local last", "ettin mean"])
def test_attention_in_one_call_a_layer_gives_the_same(folders: dict[str, Path], layout: str) -> None:
    """As on a GPU: by the kernel's stand-in, and through windows in blocks."""
    plain = load(folders[layout])
    engine = EncoderEngine(plain.reranker.engine.encoder, plain.reranker.engine.tokens, varlen=varlen)
    packed = replace(plain.reranker, engine=engine)
    np.testing.assert_allclose(pair_logits(packed, PAIRS), pair_logits(plain, PAIRS), atol=2e-5, rtol=0)


@pytest.mark.parametrize("layout", ["gte", "local last", "ettin"])
def test_bits_do_not_depend_on_what_is_beside(folders: dict[str, Path], layout: str) -> None:
    words = random.Random(2)
    pairs = [
        (Query(f"q{n % 7}", " ".join(words.choices(encoders.WORDS, k=1 + n % 40))),
         Document(f"d{n}", " ".join(words.choices(encoders.WORDS, k=words.choice([1, 3, 20, 21, 60, 150])))))
        for n in range(60)
    ]  # fmt: skip
    reranker = load(folders[layout])
    expected = pair_logits(reranker, pairs).tolist()
    order = words.sample(range(len(pairs)), len(pairs))
    for part in (order[:17], order[17:18], order[18:]):
        assert pair_logits(reranker, [pairs[place] for place in part]).tolist() == [expected[place] for place in part]
    threads = torch.get_num_threads()
    try:
        assert pair_logits(load(folders[layout], device_threads=3), pairs).tolist() == expected
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"hidden_activation": "relu"}, "hidden_activation is 'relu'"),
        ({"classifier_activation": "silu"}, "classifier_activation is 'silu'"),
        ({"classifier_pooling": "max"}, "classifier_pooling is 'max'"),
        ({"norm_bias": "no"}, "norm_bias is 'no'"),
        ({"local_attention": 0}, "local_attention is 0"),
        ({"global_attn_every_n_layers": 1.5}, "global_attn_every_n_layers is 1.5"),
        ({"layer_types": ["full_attention"]}, "layer_types is not"),
        ({"layer_types": ["full_attention"] * 3 + [["x"]]}, "layer_types is not"),
        ({"global_rope_theta": -1}, "global_rope_theta is -1"),
        ({"rope_parameters": {"sliding_attention": {"rope_theta": "x"}}}, "a rope_theta is no positive number"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "not of rope_type 'default'"),
        ({"rope_parameters": {"full_attention": 3}}, "rope_parameters"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling"),
        ({"num_labels": 2}, "2 labels"),
        ({"num_attention_heads": 3}, "does not divide"),
        ({"norm_eps": 0}, "norm_eps is 0"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"vocab_size": 20}, "an embedding of 20"),
    ],
)
def test_configs_that_are_not_computed_are_refused(
    copy: Callable[[str], Path], setting: dict[str, Any], message: str
) -> None:
    file = copy("gte") / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | setting))
    with pytest.raises(CheckpointError, match=message):
        load(file.parent)


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "lasttoken"}, "lasttoken"),
        ("1_Pooling/config.json", {"pooling_mode": ["cls", "mean"]}, "1_Pooling is of"),
        ("2_Dense/config.json", {"activation_function": "torch.nn.modules.activation.SiLU"}, "SiLU"),
        ("2_Dense/config.json", {"activation_function": "evil.GELU"}, "evil.GELU"),
        ("2_Dense/config.json", {"use_residual": True}, "a residual"),
        ("2_Dense/config.json", {"in_features": 65}, "in_features 65, not 64"),
        ("2_Dense/config.json", {"out_features": "32"}, "out_features '32'"),
        ("3_LayerNorm/config.json", {"dimension": 64}, "3_LayerNorm follows no Dense of 32"),
        ("4_Dense/config.json", {"activation_function": "torch.nn.Sigmoid"}, "Sigmoid"),
        ("4_Dense/config.json", {"out_features": 2}, "2 outputs, not one"),
        (
            "4_Dense/config.json",
            {"module_output_name": "sentence_embedding"},
            "sentence_embedding', not 'scores'",
        ),
        ("4_Dense/config.json", {"bias": False}, "1 unexpected: 4_Dense/linear.bias"),
        ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case"),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"max_length": 9}}}, "processing_kwargs"),
    ],
)
def test_heads_that_are_not_computed_are_refused(
    copy: Callable[[str], Path], name: str, setting: dict[str, Any], message: str
) -> None:
    file = copy("ettin") / name
    file.write_text(json.dumps(json.loads(file.read_text()) | setting))
    with pytest.raises(CheckpointError, match=message):
        load(file.parents[name.count("/")])


@pytest.mark.parametrize("path", ["../2_Dense", "/2_Dense", "..", "1_Pooling/../2_Dense"])
def test_a_module_is_in_a_folder_beside_the_network(copy: Callable[[str], Path], path: str) -> None:
    file = copy("ettin") / "modules.json"
    file.write_text(file.read_text().replace('"2_Dense"', json.dumps(path)))
    with pytest.raises(CheckpointError, match="modules"):
        load(file.parent)


def test_a_head_is_part_of_the_scorers_name_and_of_what_workers_compare(copy: Callable[[str], Path]) -> None:
    folder = copy("ettin")
    before, file = identify(CheckpointSpec(str(folder))), folder / "3_LayerNorm" / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)
    assert identify(CheckpointSpec(str(folder))).fingerprint != before.fingerprint
    with pytest.raises(CheckpointError, match="not the checkpoint"):
        confirm(before, CheckpointSpec(str(folder)))


def test_an_encoder_without_a_head_is_refused(copy: Callable[[str], Path]) -> None:
    folder = copy("ettin")
    (folder / "modules.json").unlink()
    with pytest.raises(CheckpointError, match=r"missing: classifier\.bias"):
        load(folder, family="modernbert-reranker")


@given(tokens=st.integers(1, 60), window=st.one_of(st.none(), st.integers(0, 70)))
def test_operations_of_local_attention_are_those_of_the_tokens_seen(tokens: int, window: int | None) -> None:
    places, reach = np.arange(tokens), tokens if window is None else window
    seen = int((np.abs(places[:, None] - places) <= reach).sum())
    assert LayerAttention(1e4, window).seen(tokens) == seen


def test_a_family_by_its_config(folders: dict[str, Path]) -> None:
    for layout in ("gte", "ettin"):
        identity = identify(CheckpointSpec(str(folders[layout])))
        assert (identity.family, identity.logit_bias) == ("modernbert-reranker", 0.0)
        assert identity.limits == Limits(max_length=512, max_query_length=384), "no more than there are positions"
