"""BERT classifiers against transformers' own network, on pairs as sentence-transformers' CrossEncoder makes them."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

from checkpoints import encoders
from lakerank import load_reranker
from lakerank.errors import CheckpointError
from lakerank.limits import Limits
from lakerank.model.cross_encoder.tokenize import BERT_PAIR, PairLimits, PairTokenizer
from lakerank.model.spec import CheckpointSpec, identify
from lakerank.records import Document, DocumentGroup, Query, Reject, RejectReason, ScoredPair
from oracles.pairs import pair_logits

LENGTH = 128
LONG = " ".join(encoders.WORDS)
QUERIES = (
    Query("q-short", "Red Apple"),
    Query("q-half", f"where is the {LONG} {LONG[: len(LONG) // 2]}"),
    Query("q-signs", "?! [SEP] [PAD] (x) ?"),
)
DOCUMENTS = (
    Document("d-short", "A red apple lies on the table."),
    Document("d-cut", " ".join([LONG] * 4)),
    Document("d-scripts", "Красное яблоко. 赤いりんご\u200b \u0301é \U0001f34e תפוח ﬁ ①"),
    Document("d-names", "water [PAD] river [SEP] bridge [MASK] train [CLS]"),
)
GROUPS = [DocumentGroup(document, QUERIES) for document in DOCUMENTS]
PAIRS = [(query, document) for document in DOCUMENTS for query in QUERIES]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("bert")
    return folder, encoders.write_bert(folder)


@pytest.fixture(scope="module")
def reranker(bert: tuple[Path, Any]) -> Any:
    return load(bert[0])


@pytest.fixture
def copy(bert: tuple[Path, Any], tmp_path: Path) -> Path:
    return Path(shutil.copytree(bert[0], tmp_path / "copy"))


def load(folder: Path, **options: Any) -> Any:
    return load_reranker(str(folder), device="cpu", dtype="float32", max_length=LENGTH, **options)


def by_cross_encoder(folder: Path, network: Any, query: str, document: str, length: int = LENGTH) -> float:
    """As CrossEncoder.predict tokenises a pair: the published template, the longer text cut first."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(length, strategy="longest_first")
    pair = tokenizer.encode(query, document)
    ids, types = torch.tensor([pair.ids]), torch.tensor([pair.type_ids])
    with torch.no_grad():
        return float(network(ids, attention_mask=torch.ones_like(ids), token_type_ids=types).logits[0, 0])


def test_logits_are_those_of_transformers(bert: tuple[Path, Any], reranker: Any) -> None:
    expected = [by_cross_encoder(*bert, query.text or "", document.text or "") for query, document in PAIRS]
    np.testing.assert_allclose(pair_logits(reranker, PAIRS), expected, atol=1e-4, rtol=0)
    assert np.std(expected) > 0.05, "logits that differ by more than rounding"


def test_what_was_cut_is_said(reranker: Any) -> None:
    """A query beyond half of a pair is cut only beside a document that is longer than the other half, too."""
    results = [result for result in reranker.score_groups(GROUPS) if isinstance(result, ScoredPair)]
    assert {(r.query_id, r.doc_id) for r in results if r.query_truncated} == {("q-half", "d-cut")}
    assert {(r.query_id, r.doc_id) for r in results if r.document_truncated} == {(q.query_id, "d-cut") for q in QUERIES}
    assert max(result.query_tokens + result.document_tokens for result in results) == LENGTH


def test_bits_do_not_depend_on_what_is_beside(reranker: Any) -> None:
    words = random.Random(2)
    pairs = [
        (Query(f"q{n % 7}", " ".join(words.choices(encoders.WORDS, k=1 + n % 40))),
         Document(f"d{n}", " ".join(words.choices(encoders.WORDS, k=words.choice([1, 3, 20, 21, 60, 150])))))
        for n in range(60)
    ]  # fmt: skip
    expected = pair_logits(reranker, pairs).tolist()
    order = words.sample(range(len(pairs)), len(pairs))
    for part in (order[:17], order[17:18], order[18:]):
        assert pair_logits(reranker, [pairs[place] for place in part]).tolist() == [expected[place] for place in part]


def test_images_and_empty_texts_are_rejects(reranker: Any, make_image: Callable[..., bytes]) -> None:
    documents = (Document("page", image=make_image(60, 60)), Document("blank", "\n"), Document("good", "water"))
    results = reranker.score_groups([DocumentGroup(document, QUERIES[:1]) for document in documents])
    reasons = [result.reason if isinstance(result, Reject) else None for result in results]
    assert reasons == [RejectReason.MODALITY_UNSUPPORTED, RejectReason.EMPTY_DOCUMENT, None]


_LETTER = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))


@given(st.integers(0, 40), st.integers(0, 40), st.integers(3, 60))
def test_the_longer_text_is_cut_as_tokenizers_cuts_it(query: int, document: int, length: int) -> None:
    limits = PairLimits(BERT_PAIR, length, length)
    first, second = (_LETTER.encode(["a"] * count, is_pretokenized=True) for count in (query, document))
    truncating = Tokenizer.from_str(_LETTER.to_str())
    truncating.enable_truncation(length - 3, strategy="longest_first")
    pair = truncating.post_process(first, second)
    expected = (pair.sequence_ids.count(0), pair.sequence_ids.count(1))
    kept = limits.query_tokens(query, document)
    ((start, stop),) = limits.spans(kept, document)
    assert (kept, stop - start) == expected


@pytest.mark.parametrize("spaces", range(200, 500, 25))
def test_a_text_is_cut_to_the_first_tokens_of_the_whole(bert: tuple[Path, Any], spaces: int) -> None:
    """Wherever the cut before tokenising falls: WordPiece reads a word of over 100 characters as one token."""
    tokenizer = Tokenizer.from_file(str(bert[0] / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    text, most = "red " * 10 + " " * spaces + "a" * 101 + " water" * 9, 16 - 3
    whole = tokenizer.encode(text, add_special_tokens=False).ids
    assert whole[10] == tokenizer.token_to_id("[UNK]")
    assert PairTokenizer(tokenizer, PairLimits(BERT_PAIR, 16, 8)).document(text).token_ids.tolist() == whole[:most]


def test_a_family_by_its_config(bert: tuple[Path, Any]) -> None:
    identity = identify(CheckpointSpec(str(bert[0])))
    assert (identity.family, identity.logit_bias) == ("bert-reranker", 0.0)
    assert identity.limits == Limits(max_length=256, max_query_length=192), "no more than there are positions"
    assert identify(CheckpointSpec(str(bert[0]), max_length=64)).fingerprint != identity.fingerprint


def test_the_last_position_is_used(bert: tuple[Path, Any]) -> None:
    document = Document("d", "water river " * 300)
    expected = by_cross_encoder(*bert, QUERIES[0].text or "", document.text or "", length=256)
    loaded = load_reranker(str(bert[0]), device="cpu", dtype="float32")
    assert pair_logits(loaded, [(QUERIES[0], document)]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", {"is_decoder": True}, "is_decoder"),
        ("config.json", {"num_labels": 2}, "2 labels"),
        ("config.json", {"hidden_act": "relu"}, "hidden_act"),
        ("config.json", {"type_vocab_size": 1}, "an embedding of 1"),
        ("config.json", {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Tanh"}, "Tanh"),
        ("config.json", {"sentence_transformers": {"activation_fn": "torch.nn.Softplus"}}, "Softplus"),
        ("config_sentence_transformers.json", {"default_prompt_name": "web"}, "'web'"),
        (
            "modules.json",
            [{"type": "sentence_transformers.base.models.Transformer"}, {"type": "x.Dense"}],
            r"x\.Dense",
        ),
        ("modules.json", {"type": "x"}, "list of modules"),
    ],
)
def test_what_is_not_computed_is_refused(copy: Path, name: str, content: Any, message: str) -> None:
    file = copy / name
    stated = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(stated | content if isinstance(content, dict) else content))
    with pytest.raises(CheckpointError, match=message):
        load(copy)


def test_what_sentence_transformers_writes_is_accepted(copy: Path) -> None:
    (copy / "modules.json").write_text('[{"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"}]')
    stated = {"activation_fn": "torch.nn.modules.activation.Sigmoid", "prompts": {}, "default_prompt_name": None}
    (copy / "config_sentence_transformers.json").write_text(json.dumps(stated))
    assert identify(CheckpointSpec(str(copy))).family == "bert-reranker"


def test_a_tokenizer_that_makes_pairs_otherwise_is_refused(copy: Path) -> None:
    content = json.loads((copy / "tokenizer.json").read_text())
    for part in content["post_processor"]["pair"]:
        next(iter(part.values()))["type_id"] = 0
    (copy / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"its pairs are not \[CLS\] query \[SEP\]"):
        load(copy)


def test_a_tensor_that_is_missing_is_named_as_it_is_stored(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    del tensors["bert.pooler.dense.bias"], tensors["classifier.weight"]
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"2 missing: bert\.pooler\.dense\.bias, classifier\.weight"):
        load(copy)
