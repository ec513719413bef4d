"""The wide door: whatever sentence-transformers' CrossEncoder loads has that library's scores, or is refused."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import site
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import lakerank
from checkpoints import encoders
from checkpoints import sentence_transformers as layouts
from lakerank import load_reranker
from lakerank.errors import CheckpointError
from lakerank.limits import Limits
from lakerank.model.spec import CheckpointSpec, identify
from lakerank.records import Document, DocumentGroup, Query, Reject, RejectReason, ScoredPair

FAMILY = "sentence-transformers"
BERT, ETTIN, ANSWER, IMAGES = "bert", "ettin", "logit-score", "llava"
OTHERS = ("albert", "deberta")
PROMPTED = {"prompts": {"web": "judge the river"}, "default_prompt_name": "web"}

_words = random.Random(4)


def _text(most: int) -> str:
    return " ".join(_words.choices(encoders.WORDS, k=_words.randint(1, most)))


PAIRS = [(_text(30), _text(_words.choice([3, 40, 300]))) for _ in range(40)] + [("[SEP] ?", "赤いりんご \u200b [PAD]")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random checkpoint in each layout; not to be written to."""
    root = tmp_path_factory.mktemp("layouts")
    encoders.write_bert(root / BERT)
    layouts.write_ettin(root / ETTIN)
    layouts.write_logit_score(root / ANSWER, **PROMPTED)
    layouts.write_llava(root / IMAGES)
    for name in OTHERS:
        layouts.write_classifier(root / name, name)
    return {name: root / name for name in (BERT, ETTIN, ANSWER, IMAGES, *OTHERS)}


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(folders[name], tmp_path / name))


def load(folder: Path, **options: Any) -> Any:
    return load_reranker(str(folder), device="cpu", dtype="float32", family=FAMILY, **options)


def predicted(folder: Path, pairs: Any, **options: Any) -> np.ndarray:
    """The library's own scores, by default before its activation."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), device="cpu", local_files_only=True)
    return np.asarray(model.predict(pairs, **({"activation_fn": torch.nn.Identity()} | options)))


@pytest.mark.parametrize("reproducible", [True, False])
@pytest.mark.parametrize("name", [BERT, ETTIN, ANSWER, IMAGES])
def test_scores_are_the_librarys(folders: dict[str, Path], name: str, reproducible: bool) -> None:
    expected = predicted(folders[name], PAIRS)
    np.testing.assert_allclose(load(folders[name], reproducible=reproducible).score(PAIRS), expected, atol=1e-5, rtol=0)
    assert np.std(expected) > 0.02, "logits that differ by more than rounding"


@pytest.mark.parametrize("name", OTHERS)
def test_what_no_narrower_family_computes_is_the_librarys(folders: dict[str, Path], name: str) -> None:
    reranker = load_reranker(str(folders[name]), device="cpu", dtype="float32")
    assert reranker.family == FAMILY
    np.testing.assert_allclose(reranker.score(PAIRS), predicted(folders[name], PAIRS), atol=1e-5, rtol=0)


def test_relevance_is_the_librarys_score_where_it_has_a_sigmoid(folders: dict[str, Path]) -> None:
    reranker = load(folders[ETTIN])
    expected = predicted(folders[ETTIN], PAIRS, activation_fn=None)
    np.testing.assert_allclose(reranker.relevance(reranker.score(PAIRS)), expected, atol=1e-6)


def test_another_activation_is_part_of_the_logit(copy: Callable[[str], Path]) -> None:
    folder = copy(ETTIN)
    change(folder / "config_sentence_transformers.json", activation_fn="torch.nn.modules.activation.Tanh")
    expected = predicted(folder, PAIRS, activation_fn=None)
    np.testing.assert_allclose(load(folder).score(PAIRS), expected, atol=1e-5)
    assert np.abs(expected - predicted(folder, PAIRS)).max() > 1e-4


def test_bits_do_not_depend_on_what_is_beside(folders: dict[str, Path]) -> None:
    for name in (BERT, ANSWER):
        reranker, order = load(folders[name]), _words.sample(range(len(PAIRS)), len(PAIRS))
        expected = reranker.score(PAIRS).tolist()
        for part in (order[:17], order[17:18], order[18:]):
            assert reranker.score([PAIRS[at] for at in part]).tolist() == [expected[at] for at in part]


def test_an_instruction_is_the_librarys_prompt(folders: dict[str, Path]) -> None:
    own = "find the bridge"
    for name in (BERT, ANSWER):
        expected = predicted(folders[name], PAIRS[:9], prompt=own)
        given = [(Query(text=query, instruction=own), document) for query, document in PAIRS[:9]]
        np.testing.assert_allclose(load(folders[name]).score(given), expected, atol=1e-5)
        np.testing.assert_allclose(load(folders[name], instruction=own).score(PAIRS[:9]), expected, atol=1e-5)
        assert np.abs(expected - predicted(folders[name], PAIRS[:9])).max() > 1e-3
    without = predicted(folders[ANSWER], PAIRS[:9], prompt="")
    assert np.abs(without - load(folders[ANSWER]).score(PAIRS[:9])).max() > 1e-3, "its default prompt"


def test_images_are_scored_as_the_library_scores_them(
    folders: dict[str, Path], make_image: Callable[..., bytes]
) -> None:
    red, page = make_image(90, 60), make_image(200, 80, seed=1)
    shown, drawn = (Image.open(io.BytesIO(data)).convert("RGB") for data in (red, page))
    address = "https://a.example/river.png"  # which the library would fetch, were it not told that this is a text
    pairs = [
        (Query(text="red apple"), Document(image=red)),
        (Query(image=red), Document(images=(red, page), text="the table")),
        (Query(image=page), Document(text="red")),
        (Query(text=address), Document(image=page, text=address)),
    ]
    contents = [
        ("red apple", shown),
        (shown, {"image": [shown, drawn], "text": "the table"}),
        (drawn, "red"),
        ({"text": address}, {"image": drawn, "text": address}),
    ]
    reranker = load(folders[IMAGES])
    np.testing.assert_allclose(reranker.score(pairs), predicted(folders[IMAGES], contents), atol=1e-5)
    texts = [(address, address), ("a", "b")]
    by_dicts = [tuple({"text": text} for text in pair) for pair in texts]
    np.testing.assert_allclose(reranker.score(texts), predicted(folders[IMAGES], by_dicts), atol=1e-5)


def test_what_cannot_be_read_is_a_reject(folders: dict[str, Path], make_image: Callable[..., bytes]) -> None:
    page, many = make_image(60, 60), tuple(make_image(60, 60, seed=seed) for seed in range(20))
    documents = (Document("page", image=page), Document("blank", "\n"), Document("good", "water"))
    groups = [DocumentGroup(document, (Query("q", "a"), Query("\ud800", "\ud800"))) for document in documents]
    reasons = [getattr(result, "reason", None) for result in load(folders[BERT]).score_groups(groups)]
    modality, empty = RejectReason.MODALITY_UNSUPPORTED, RejectReason.EMPTY_DOCUMENT
    assert reasons == [modality, modality, empty, empty, None, RejectReason.TEXT_UNDECODABLE]
    groups = [DocumentGroup(document, (Query("q", "a"),)) for document in (*documents, Document("d", images=many))]
    for reproducible in (True, False):
        results = [*load(folders[IMAGES], reproducible=reproducible).score_groups(groups)]
        assert [getattr(result, "reason", None) for result in results] == [
            None, empty, None, RejectReason.INPUT_TOO_LONG,
        ]  # fmt: skip
        assert isinstance(results[-1], Reject)
        assert "20 images and their texts, in 256 tokens" in results[-1].detail


def test_lengths_are_the_models_and_what_was_cut_is_said(folders: dict[str, Path]) -> None:
    long = Document("long", "river " * 100)
    for name, most in ((BERT, 64), (ANSWER, 64), (ANSWER, None)):
        reranker = load(folders[name], max_length=most)
        groups = [DocumentGroup(document, (Query("q", "apple"),)) for document in (long, Document("short", "river"))]
        cut, whole = reranker.score_groups(groups)
        assert isinstance(cut, ScoredPair)
        assert isinstance(whole, ScoredPair)
        assert cut.query_tokens + cut.document_tokens == reranker.limits.max_length == (most or 96)
        assert (cut.document_truncated, whole.document_truncated) == (True, False)


def test_lengths_are_those_published(copy: Callable[[str], Path]) -> None:
    assert identify(CheckpointSpec(str(copy(BERT)), family=FAMILY)).limits.max_length == 256
    folder = copy(ETTIN)
    assert (
        identify(
            CheckpointSpec(str(folder), family=FAMILY), Limits(max_length=90, max_query_length=20)
        ).limits.max_length
        == 90
    )
    change(folder / "sentence_bert_config.json", max_seq_length=100)
    assert identify(CheckpointSpec(str(folder), family=FAMILY)).limits.max_length == 100
    with pytest.raises(CheckpointError, match=r"max_length 129, but sentence-transformers has 128 positions"):
        identify(CheckpointSpec(str(folder), family=FAMILY, max_length=129))


def change(file: Path, **values: Any) -> None:
    """Give a JSON file other values."""
    file.write_text(json.dumps((json.loads(file.read_text()) if file.is_file() else {}) | values))


def name_of(folder: Path) -> str:
    return identify(CheckpointSpec(str(folder), family=FAMILY)).fingerprint


@pytest.mark.parametrize(
    "file",
    [
        "2_Dense/config.json", "2_Dense/model.safetensors", "config_sentence_transformers.json", "modules.json",
        "tokenizer_config.json", "chat_template.jinja",
    ],
)  # fmt: skip
def test_a_scorers_name_covers_what_the_library_reads(copy: Callable[[str], Path], file: str) -> None:
    folder = copy(ETTIN)
    before = name_of(folder)
    if file.endswith("safetensors"):
        save_file({name: tensor + 1 for name, tensor in load_file(folder / file).items()}, folder / file)
    else:
        (folder / file).write_text(((folder / file).read_text() if (folder / file).is_file() else "") + "\n")
    assert name_of(folder) != before


def refused(folder: Path, message: str) -> None:
    """Loading ends in a CheckpointError within seconds."""
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=message):
        load(folder)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        (
            "config.json",
            {"_attn_implementation": "someone/kernel"},
            r"config\.json: _attn_implementation is 'someone/kernel', which is not the",
        ),
        ("config.json", {"num_hidden_layers": 5}, "num_hidden_layers is 5"),
        (
            "config_sentence_transformers.json",
            {"activation_fn": "torch.hub.load"},
            "activation_fn is 'torch.hub.load', which is not",
        ),
        ("sentence_bert_config.json", {"tokenizer_name_or_path": "../other"}, "tokenizer_name_or_path is '../other'"),
        ("sentence_bert_config.json", {"model_args": {"device_map": "auto"}}, "device_map is 'auto'"),
        (
            "adapter_config.json",
            {"base_model_name_or_path": "someone/base"},
            r"adapter_config\.json: base_model_name_or_path",
        ),
    ],
)
def test_settings_that_name_code_or_other_files_are_refused(
    copy: Callable[[str], Path], file: str, values: dict[str, Any], message: str
) -> None:
    folder = copy(BERT)
    change(folder / file, **values)
    refused(folder, message)


@pytest.mark.parametrize(
    ("kind", "path", "message"),
    [
        ("os.system", "1_Pooling", r"os\.system is no module"),
        ("modeling.Own", "1_Pooling", r"modeling\.Own is no module"),
        ("sentence_transformers.base.modules.Router", "1_Pooling", "Router is no module"),
        ("sentence_transformers.base.modules.Dense", "../other/2_Dense", "has another folder than"),
        ("sentence_transformers.base.modules.Dense", "/etc", "has another folder than"),
        ("sentence_transformers.base.modules.Dense", "..", "has another folder than"),
        ("sentence_transformers.base.modules.Transformer", "1_Pooling", "has another folder than"),
    ],
)
def test_modules_that_are_not_the_librarys_own_are_refused(
    copy: Callable[[str], Path], kind: str, path: str, message: str
) -> None:
    folder = copy(ETTIN)
    modules = json.loads((folder / "modules.json").read_text())
    modules[1] |= {"type": kind, "path": path}
    (folder / "modules.json").write_text(json.dumps(modules))
    refused(folder, message)


def test_pickled_weights_are_refused_before_the_library_sees_them(copy: Callable[[str], Path]) -> None:
    folder = copy(ETTIN)
    torch.save({}, folder / "2_Dense" / "pytorch_model.bin")
    load(folder)  # beside safetensors nobody reads it
    (folder / "2_Dense" / "model.safetensors").unlink()
    refused(folder, r"has only pytorch_model\.bin, which could run code")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, r"pytorch_model\.bin")


@pytest.mark.parametrize(
    "file",
    ["modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "tokenizer_config.json",
     "2_Dense/config.json", "2_Dense/model.safetensors", "4_Dense/model.safetensors", "tokenizer.json"],
)  # fmt: skip
def test_a_damaged_file_is_named(copy: Callable[[str], Path], file: str) -> None:
    folder = copy(ETTIN)
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[: len(whole) // 2])
    refused(folder, file)


def test_weights_that_are_not_stored_are_never_made_up(copy: Callable[[str], Path]) -> None:
    """transformers makes them up with a warning."""
    folder = copy(BERT)
    stored = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in stored.items() if name != "classifier.weight"}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, r"1 missing: model\.classifier\.weight|1 missing: classifier\.weight")


def test_several_labels_are_refused_in_config_json_before_planning(copy: Callable[[str], Path]) -> None:
    folder = copy(BERT)
    change(folder / "config.json", id2label={"0": "a", "1": "b"})
    with pytest.raises(CheckpointError, match="2 labels, not the one of a relevance score"):
        name_of(folder)


def test_a_head_of_several_labels_is_refused(copy: Callable[[str], Path]) -> None:
    folder = copy(ETTIN)
    last = folder / "4_Dense"
    save_file({"linear.weight": torch.ones(2, 48), "linear.bias": torch.ones(2)}, last / "model.safetensors")
    change(last / "config.json", out_features=2)
    refused(folder, "2 labels, not the one of a relevance score")


def test_a_template_without_a_place_for_pairs_is_refused(copy: Callable[[str], Path]) -> None:
    folder = copy(ANSWER)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    )
    refused(folder, "cannot carry a 'query'/'document' pair")


def test_without_the_library_the_error_names_the_extra(folders: dict[str, Path], tmp_path: Path) -> None:
    """An installation of everything else: links to all packages but that one."""
    for place in site.getsitepackages():
        for package in Path(place).iterdir():
            if not package.name.startswith("sentence_transformers") and package.suffix != ".pth":
                (tmp_path / package.name).symlink_to(package)
    command = (
        "import sys; from lakerank.model.spec import CheckpointSpec, identify;"
        f"identify(CheckpointSpec(sys.argv[1], family={FAMILY!r}))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(lakerank.__file__).parents[1]), str(tmp_path)])}
    process = subprocess.run(
        [sys.executable, "-S", "-c", command, str(folders[BERT])], env=environment, capture_output=True, text=True
    )
    assert "CheckpointError: " in process.stderr
    assert 'pip install "lakerank[sentence-transformers]"' in process.stderr
