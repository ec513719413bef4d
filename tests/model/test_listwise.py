"""jina-reranker-v3, -v3.5 and a chat model that writes orders, against the published loops, on lists of every kind."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from checkpoints.listwise import write_jina_v3, write_lister
from lakerank import load_reranker
from lakerank.errors import CheckpointError, ConfigError, PairRejected
from lakerank.limits import Listwise
from lakerank.model.request import answer, parse
from lakerank.model.spec import CheckpointSpec, identify
from lakerank.records import CandidateList, Document, DocumentGroup, Query, Reject, RejectReason, ScoredPair
from lakerank_benchmark.checkpoints import SHAPES, random_checkpoint
from oracles.listwise import PublishedJinaV3, PublishedLister

#: On both sides of the engine's boundaries: texts that begin and end with what tokens could reach across.
TEXTS = [
    "The red apple lies there.", "x", "\n\n (memory)\n\n kernel  disk ", "apple " * 30, "яблоко りんご תפוח " * 3,
    "history of the bridge and the river " * 9, "memory kernel " * 40, "}{n} <|embed_token|>end", "  …",
]  # fmt: skip
QUERY = "red apple\n(where)?"
LENGTHS = {"v3": (512, 2048), "v3.5": (1024, 8192)}
LISTERS = ["v3", "v3.5", "lister"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("listwise")
    return {
        "v3": write_jina_v3(base / "v3"),
        "v3.5": write_jina_v3(base / "v3.5", window=48),
        "lister": write_lister(base / "lister"),
    }


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> Callable[..., Any]:
    """`models(name, **options)`: a reranker in memory, one for the same options."""
    return functools.cache(lambda name, **options: load(folders[name], **options))


def load(folder: Path, **options: Any) -> Any:
    family = "list-generation" if folder.name == "lister" else None
    return load_reranker(folder, device="cpu", **({"dtype": "float32", "family": family} | options))


def listed(texts: Sequence[str | None], query: str | None = QUERY, **of_query: Any) -> CandidateList:
    documents = tuple(Document(f"d{n}", text=text) for n, text in enumerate(texts))
    return CandidateList(Query("q", text=query, **of_query), documents)


def results(model: Any, *lists: CandidateList) -> list[ScoredPair | Reject]:
    return [*model.reranker.score_lists(lists)]


def logits(model: Any, *lists: CandidateList) -> np.ndarray:
    """Logits of the documents of lists, all of which can be scored, in order."""
    scored = results(model, *lists)
    assert [one.doc_id for one in scored] == [document.doc_id for each in lists for document in each.documents]
    return np.array([one.logit for one in scored if isinstance(one, ScoredPair)], dtype=np.float32)


def order(of_list: np.ndarray) -> list[int]:
    return np.argsort(-of_list, kind="stable").tolist()


@pytest.mark.parametrize("name", ["v3", "v3.5"])
@pytest.mark.parametrize("block", [None, 4])
def test_cosines_are_the_published_loops(
    folders: dict[str, Path], models: Callable[..., Any], name: str, block: int | None
) -> None:
    loop = PublishedJinaV3(folders[name], block=block or 125, lengths=LENGTHS[name])
    model = models(name, listwise=None if block is None else Listwise(window=block))
    for instruction in (None, "Prefer (fruit)!"):
        expected = loop.scores(QUERY, TEXTS, instruction)
        assert np.ptp(expected) > 0.1
        ours = logits(model, listed(TEXTS, instruction=instruction))
        assert np.abs(np.tanh(ours / 2) - expected).max() < 1e-4
        np.testing.assert_allclose(model.relevance(ours), (1 + expected) / 2, atol=1e-4)


def test_blocks_are_filled_by_the_tokens_of_texts_alone(tmp_path: Path) -> None:
    """3,000 tokens less twice the query's leave 940 to texts: 29 or 30 documents a block, by the published count."""
    folder, texts = write_jina_v3(tmp_path, max_position_embeddings=3000), [f"apple {n} " * 8 for n in range(70)]
    expected = PublishedJinaV3(folder).scores(QUERY, texts)
    assert np.abs(np.tanh(logits(load(folder), listed(texts)) / 2) - expected).max() < 1e-4


@pytest.mark.nightly
def test_long_texts_are_cut_and_blocks_filled_as_published(tmp_path: Path) -> None:
    """Prompts of 7,000 tokens: the fifth document, cut to 2,048 as the first, closes a block."""
    folder = write_jina_v3(tmp_path, max_position_embeddings=7000)
    texts = ["яблоко りんご " * 900, *TEXTS[:3], "memory kernel disk " * 700, "history of the river " * 400, *TEXTS[4:]]
    expected = PublishedJinaV3(folder).scores("how much " * 400, texts)
    scored = results(load(folder), listed(texts, "how much " * 400))
    ours = np.array([one.logit for one in scored if isinstance(one, ScoredPair)])
    assert np.abs(np.tanh(ours / 2) - expected).max() < 1e-4
    cut = [one.document_truncated for one in scored if isinstance(one, ScoredPair)]
    assert cut == [number in (0, 4, 5) for number in range(len(texts))]
    assert all(one.query_truncated for one in scored if isinstance(one, ScoredPair))


def test_one_document_a_prompt_is_a_pair(folders: dict[str, Path], models: Callable[..., Any]) -> None:
    loop, model = PublishedJinaV3(folders["v3"]), models("v3", pointwise=True)
    expected = [loop.scores(QUERY, [text])[0] for text in TEXTS]
    pairs = [(QUERY, text) for text in TEXTS]
    assert np.abs(np.tanh(model.score(pairs) / 2) - expected).max() < 1e-4
    np.testing.assert_array_equal(model.score(pairs[2:4]), model.score(pairs)[2:4])
    assert [one.index for one in model.rank(QUERY, TEXTS)] == order(np.array(expected))
    whole, single = (identify(CheckpointSpec(str(folders["v3"]), pointwise=only)) for only in (False, True))
    assert whole.fingerprint != single.fingerprint
    assert whole.listwise == Listwise(1, 125, None)
    assert single.listwise is None
    assert single.max_document_tokens() == 2048
    with pytest.raises(ConfigError, match="pointwise: lists alone are scored"):
        load(folders["lister"], pointwise=True)


@pytest.mark.parametrize(("window", "stride", "count"), [(4, 2, 9), (12, 5, 14)])
def test_orders_are_those_that_transformers_generates(
    folders: dict[str, Path], models: Callable[..., Any], window: int, stride: int, count: int
) -> None:
    texts = [f"{text.replace('<|embed_token|>', '')} {number}" for number in range(2) for text in TEXTS][:count]
    expected = PublishedLister(folders["lister"], window=window, stride=stride).order("red apple", texts)
    ours = logits(models("lister", listwise=Listwise(window=window, stride=stride)), listed(texts, "red apple"))
    assert order(ours) == expected
    assert expected != sorted(expected)
    np.testing.assert_allclose(np.sort(1 / (1 + np.exp(-ours))), (np.arange(count) + 0.5) / count, atol=1e-6)


def test_a_window_leaves_each_document_its_share(models: Callable[..., Any]) -> None:
    model = models("lister", max_length=2300, listwise=Listwise(window=6))
    short, long = results(model, listed(["apple", "memory kernel " * 300]))
    assert isinstance(short, ScoredPair)
    assert isinstance(long, ScoredPair)
    assert (short.document_truncated, long.document_truncated) == (False, True)
    assert 80 < long.document_tokens < 200
    with pytest.raises(ConfigError, match=r"window: 40 documents .* do not fit into model.max_length 2300"):
        models("lister", max_length=2300, listwise=Listwise(window=40))


@st.composite
def some_lists(draw: st.DrawFn) -> list[CandidateList]:
    texts = st.lists(st.sampled_from([*TEXTS[:5], "x", None, "", " \n", "\ud800"]), max_size=7)
    queries = st.sampled_from([QUERY, "x", None, "\udfff"])
    return [listed(draw(texts), draw(queries)) for _ in range(draw(st.integers(0, 4)))]


@pytest.mark.parametrize("name", LISTERS)
def test_a_list_is_scored_as_if_it_were_alone(models: Callable[..., Any], name: str) -> None:
    model = models(name, listwise=Listwise(window=3, stride=2 if name == "lister" else None))

    @settings(max_examples=12, deadline=None, derandomize=True)
    @given(some_lists())
    def check(lists: list[CandidateList]) -> None:
        together = results(model, *lists)
        assert together == [one for each in lists for one in results(model, each)]
        assert [one.doc_id for one in together] == [document.doc_id for each in lists for document in each.documents]
        for each in lists:  # a document that cannot be read leaves its list
            bad = {d.doc_id for d in each.documents if not (d.text or "").strip() or d.text == "\ud800"}
            kept = tuple(document for document in each.documents if document.doc_id not in bad)
            alone = results(model, replace(each, documents=kept))
            assert [one for one in results(model, each) if one.doc_id not in bad] == alone
            readable = each.query.text in (QUERY, "x")
            assert all(isinstance(one, ScoredPair) == readable for one in alone)

    check()


@pytest.mark.parametrize(
    ("name", "count"),
    [("v3", 300), ("v3.5", 40), ("lister", 30), pytest.param("lister", 300, marks=pytest.mark.nightly)],
)
def test_lists_of_one_of_many_and_of_twins(models: Callable[..., Any], name: str, count: int) -> None:
    model = models(name, listwise=Listwise(window=100) if name == "v3" else None)
    (one,) = logits(model, listed(["apple"]))
    assert np.isfinite(one)
    assert name != "lister" or one == 0.0
    assert results(model, listed([])) == []
    many = logits(model, listed([f"apple {number}" for number in range(count)]))
    assert len(set(many.tolist())) > count * 0.95
    twins = logits(model, listed(["apple", "river", "apple"]))
    assert len(set(twins.tolist())) == 3  # a place is part of what is read


@pytest.mark.parametrize("name", ["v3", "lister"])
def test_an_image_is_rejected_where_texts_are_read(
    models: Callable[..., Any], make_image: Callable[..., bytes], name: str
) -> None:
    texts = listed(["apple", "river"])
    page = Document("page", image=make_image(40, 40))
    *scored, rejected = results(models(name), replace(texts, documents=(*texts.documents, page)))
    assert scored == results(models(name), texts)
    assert isinstance(rejected, Reject)
    assert rejected.reason == RejectReason.MODALITY_UNSUPPORTED
    asked = replace(texts, query=Query("q", image=make_image(40, 40)))
    assert [one.reason for one in results(models(name), asked) if isinstance(one, Reject)] == [rejected.reason] * 2


@pytest.mark.parametrize("name", [pytest.param("v3", marks=pytest.mark.nightly), "lister"])
def test_passes_are_the_mean_of_orders_that_the_content_draws(
    folders: dict[str, Path], models: Callable[..., Any], name: str
) -> None:
    first, single, twice, often = TEXTS[:5], models(name), *(models(name, listwise=Listwise(n)) for n in (2, 5))
    given_order, reversed_order = logits(single, listed(first)), logits(single, listed(first[::-1]))[::-1]
    np.testing.assert_allclose(logits(twice, listed(first)), (given_order + reversed_order) / 2, atol=1e-6)
    renamed = CandidateList(Query("other", text=QUERY), tuple(Document(f"e{n}", text=t) for n, t in enumerate(first)))
    another = load(folders[name], listwise=Listwise(5))
    np.testing.assert_array_equal(logits(often, listed(first)), logits(another, renamed))
    assert not np.array_equal(logits(often, listed(first)), logits(twice, listed(first)))


def test_what_does_not_fit_into_memory_is_rejected(models: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, texts = models("v3", listwise=Listwise(window=4)), [*["apple"] * 4, *["river " * 300] * 2]
    short = logits(model, listed(texts[:4]))
    monkeypatch.setattr("lakerank.model.listwise.cosine.free_bytes", lambda device: 400 * 48 * 64 * 4 / 0.8)
    scored = results(model, listed(texts), listed(texts[:4]))
    assert {one.reason for one in scored[:6] if isinstance(one, Reject)} == {RejectReason.OUT_OF_MEMORY}
    np.testing.assert_array_equal([one.logit for one in scored[6:] if isinstance(one, ScoredPair)], short)


def test_a_network_that_makes_no_numbers_gives_no_scores(tmp_path: Path) -> None:
    for name, write in (("v3", write_jina_v3), ("lister", write_lister)):
        folder = write(tmp_path / name)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"][:] = float("nan")
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        scored = results(load(folder), listed(TEXTS[:3]))
        assert [one.reason for one in scored if isinstance(one, Reject)] == [RejectReason.NON_FINITE_LOGIT] * 3


def test_pages_are_listed_by_a_model_that_reads_images(tmp_path: Path, make_image: Callable[..., bytes]) -> None:
    folder = random_checkpoint(tmp_path, "qwen3-vl-reranker", SHAPES["tiny"], "float32")
    model = load(folder, family="list-generation")
    identity = identify(CheckpointSpec(str(folder), family="list-generation"))
    assert identity.listwise == Listwise(1, 4, 2)
    assert identity.accepts_images
    pages = tuple(Document(f"p{n}", image=make_image(90 + 30 * n, 60, seed=n)) for n in range(5))
    mixed = CandidateList(Query("q", text="red apple"), (*pages, Document("t", text="apple")))
    together = results(model, mixed, replace(mixed, documents=pages[::-1]))
    assert together == [*results(model, mixed), *results(model, replace(mixed, documents=pages[::-1]))]
    assert len({one.logit for one in together[:6] if isinstance(one, ScoredPair)}) == 6
    assert all(one.document_images == 1 for one in together[6:] if isinstance(one, ScoredPair))
    asked = replace(mixed, query=Query("q", image=make_image(40, 40)))
    assert {one.reason for one in results(model, asked) if isinstance(one, Reject)} == {
        RejectReason.MODALITY_UNSUPPORTED
    }


@pytest.mark.parametrize("name", ["v3", "lister"])
def test_python_ranks_a_list_and_says_that_it_scores_no_pairs(models: Callable[..., Any], name: str) -> None:
    model = models(name)
    ranked = model.rank(QUERY, [*TEXTS, ""], errors="null")
    assert [one.index for one in ranked[:-1]] == order(logits(model, listed(TEXTS)))
    assert ranked[-1].reason == RejectReason.EMPTY_DOCUMENT
    with pytest.raises(PairRejected, match="document 1: empty_document"):
        model.rank(QUERY, ["apple", ""])
    request = parse({"query": QUERY, "documents": TEXTS, "top_n": 4}, name)
    answered = answer(request, model.reranker, name, 0.0)["results"]
    assert [one["index"] for one in answered] == [one.index for one in ranked[:4]]
    with pytest.raises(ConfigError, match=r"scores lists.*pointwise=True"):
        model.score([(QUERY, "apple")])
    with pytest.raises(ConfigError, match="scores lists"):
        model.score_groups([DocumentGroup(Document("d", text="apple"), (Query("q", text="apple"),))])


def test_what_cannot_be_asked_of_a_family_is_said(folders: dict[str, Path]) -> None:
    for options, message in (
        ({"listwise": Listwise(stride=2)}, "listwise.stride: windows do not overlap"),
        ({"family": "qwen3-reranker", "listwise": Listwise()}, "listwise: pairs are scored"),
    ):
        with pytest.raises(ConfigError, match=message):
            identify(CheckpointSpec(str(folders["v3"]), **options))  # type: ignore[arg-type]
    for wrong in ({"passes": 0}, {"window": 1}, {"window": 4, "stride": 5}):
        with pytest.raises(ConfigError):
            Listwise(**wrong)
    named = {
        identify(CheckpointSpec(str(folders["lister"]), family="list-generation", listwise=each)).fingerprint
        for each in (None, Listwise(), Listwise(2), Listwise(window=8), Listwise(window=8, stride=3))
    }
    assert len(named) == 4
    assert not identify(CheckpointSpec(str(folders["lister"]), family="list-generation")).accepts_images


@pytest.mark.nightly
@pytest.mark.parametrize("name", LISTERS)
def test_other_dtypes_and_arithmetic_rank_alike(
    folders: dict[str, Path], models: Callable[..., Any], name: str
) -> None:
    expected = logits(models(name), listed(TEXTS))
    for options in ({"dtype": "bfloat16"}, {"reproducible": False}):
        ours = logits(load(folders[name], **options), listed(TEXTS))
        assert np.corrcoef(ours, expected)[0, 1] > 0.9


def test_a_projector_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    folder = write_jina_v3(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["projector.2.weight"] = tensors["projector.2.weight"][:, 1:].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"projector\.2 without biases that fit .*; copy the checkpoint again"):
        identify(CheckpointSpec(str(folder)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"use_sliding_window": False}, "do not describe 3 layers"),
        ({"sliding_window": None}, "do not describe 3 layers"),
        ({"layer_types": ["sliding_attention"]}, "do not describe 3 layers"),
        ({"model_type": "qwen2"}, "no known reranker"),
    ],
)
def test_windows_that_are_not_stated_wholly_are_refused(
    folders: dict[str, Path], tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    folder = Path(shutil.copytree(folders["v3.5"], tmp_path / "v3.5"))
    stated = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(stated))
    with pytest.raises(CheckpointError, match=message):
        identify(CheckpointSpec(str(folder)))
