"""Cross-encoders in both published layouts against transformers' own network and loops written anew."""

from __future__ import annotations

import functools
import json
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from checkpoints import encoders
from lakerank import load_reranker
from lakerank.errors import CheckpointError
from lakerank.limits import Limits
from lakerank.model.checkpoint import read_json
from lakerank.model.cross_encoder.head import read_head
from lakerank.model.cross_encoder.load import document_windows
from lakerank.model.cross_encoder.tokenize import JINA_PAIR, PairLimits, PairTokenizer
from lakerank.model.cross_encoder.weights import BGE, JINA, load_weights, read_shape, tensor_shapes
from lakerank.model.engine.attention import varlen
from lakerank.model.engine.budget import BUSY_TOKENS_CPU, Budget
from lakerank.model.engine.encoder import PackedEncoder
from lakerank.model.engine.encoder_engine import BATCHES_SORTED, DocumentWindows, EncoderEngine, Window
from lakerank.model.engine.reranker import BatchedReranker
from lakerank.model.preprocess.pipeline import Preprocessor
from lakerank.model.registry import CheckpointIdentity
from lakerank.model.spec import CheckpointSpec, identify
from lakerank.records import Document, DocumentGroup, Query, Reject, RejectReason, ScoredPair
from oracles.pairs import pair_logits

FAMILIES = ("bge", "jina")
LIMITS = Limits(max_length=128, max_query_length=32)
LONG = " ".join(encoders.WORDS)

QUERIES = (
    Query("q-short", "red apple"),
    Query("q-long", f"where is the {LONG}"),
    Query("q-signs", "?! </s> <pad> (x) ?"),
)
DOCUMENTS = (
    Document("d-short", "A red apple lies on the table."),
    Document("d-cut", " ".join([LONG] * 4)),
    Document("d-longer", " ".join(random.Random(1).choices(encoders.WORDS, k=1500))),
    Document("d-scripts", "Красное яблоко. 赤いりんご\u200b \u0301é \U0001f34e תפוח ﬁ ①"),
    Document("d-nothing", "\u200b"),
    Document("d-names", "water <pad> river </s></s> bridge <mask> train <s>"),
)
PAIRS = [(query, document) for document in DOCUMENTS for query in QUERIES]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Each family's folder, and transformers' network with the same weights."""
    writers = {"bge": encoders.write_bge, "jina": encoders.write_jina}
    folders = {name: tmp_path_factory.mktemp(name) for name in writers}
    return {name: (folders[name], write(folders[name])) for name, write in writers.items()}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def reranker(family: str, made: dict[str, tuple[Path, Any]]) -> BatchedReranker:
    return load(made[family][0])


@pytest.fixture
def threads_restored() -> Iterator[None]:
    """`device_threads` holds for the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def load(folder: Path, **options: Any) -> BatchedReranker:
    loaded = load_reranker(str(folder), device="cpu", **{"limits": LIMITS, "dtype": "float32", **options}).reranker
    assert isinstance(loaded, BatchedReranker)
    return loaded


def plain_tokenizer(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    return tokenizer


def one_logit(network: Any, sequence: list[int]) -> float:
    ids = torch.tensor([sequence])
    with torch.no_grad():
        return float(network(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 0])


def by_flag_embedding(
    folder: Path, network: Any, query: str, document: str, most_of_query: int = LIMITS.max_query_length
) -> float:
    """The query cut, the document cut to what is left, `<s> q </s></s> d </s>`."""
    tokenizer = plain_tokenizer(folder)
    asked = tokenizer.encode(query, add_special_tokens=False).ids[:most_of_query]
    output = tokenizer.encode(document, add_special_tokens=False).ids
    output = output[: LIMITS.max_length - 4 - len(asked)]
    return one_logit(network, [0, *asked, 2, 2, *output, 2])


def by_jina(folder: Path, network: Any, query: str, document: str) -> float:
    """Windows of what is left beside the query, each overlapping the last by 80 tokens or a quarter; the largest."""
    tokenizer = plain_tokenizer(folder)
    head = [0, *tokenizer.encode(query, add_special_tokens=False).ids[: LIMITS.max_query_length - 2], 2]
    output = tokenizer.encode(document, add_special_tokens=False).ids
    room = LIMITS.max_length - len(head) - 2
    if len(output) <= room:
        return one_logit(network, [*head, 2, *output, 2])
    logits, begin = [], 0
    while begin < len(output):
        end = begin + room
        window = output[-room:] if end >= len(output) else output[begin:end]
        logits.append(one_logit(network, [*head, 2, *window, 2]))
        begin = end - min(80, room // 4) if end < len(output) else end
    assert len(logits) > 1
    return max(logits)


def test_logits_are_those_of_transformers(family: str, reranker: BatchedReranker, made: dict[str, Any]) -> None:
    by = {"bge": by_flag_embedding, "jina": by_jina}[family]
    expected = [by(*made[family], query.text, document.text) for query, document in PAIRS]
    np.testing.assert_allclose(pair_logits(reranker, PAIRS), expected, atol=1e-4, rtol=0)
    assert np.std(expected) > 0.05, "logits that differ by more than rounding"


def test_a_long_query_has_the_share_that_flag_embedding_gives_it(made: dict[str, Any]) -> None:
    """`query_max_length`, unless it is set, is three quarters of the pair's."""
    query, document = Query("long", LONG * 4), DOCUMENTS[1]
    expected = by_flag_embedding(*made["bge"], query.text or "", document.text or "", 128 * 3 // 4)
    result = pair_logits(load(made["bge"][0], limits=Limits(), max_length=128), [(query, document)])
    np.testing.assert_allclose(result, [expected], atol=1e-4, rtol=0)


def test_a_pair_as_the_tokenizer_makes_it(family: str, reranker: BatchedReranker, made: dict[str, Any]) -> None:
    folder, network = made[family]
    tokenizer = plain_tokenizer(folder)
    query, document = "how much does it cost", "the price of a train <pad> is on the table"
    sequence = tokenizer.encode(query, document).ids  # by its own template
    expected = one_logit(network, sequence)
    assert pair_logits(reranker, [(Query("q", query), Document("d", document))]) == pytest.approx(expected, abs=1e-5)


def test_what_was_cut_is_said(family: str, reranker: BatchedReranker) -> None:
    groups = [DocumentGroup(document, QUERIES) for document in DOCUMENTS]
    results = [score_group for score_group in reranker.score_groups(groups) if isinstance(score_group, ScoredPair)]
    cut = {(result.query_id, result.doc_id) for result in results if result.document_truncated}
    assert {result.query_id for result in results if result.query_truncated} == {"q-long"}
    whole = {"d-cut", "d-longer"} if family == "bge" else set()
    assert cut == {(query.query_id, doc_id) for query in QUERIES for doc_id in whole}
    longest = max(result.query_tokens + result.document_tokens for result in results)
    assert (longest == LIMITS.max_length) == (family == "bge"), "windows read all of a document"


def test_cut_or_not_depends_on_the_query(made: dict[str, Any]) -> None:
    short, long = Query("short", "a"), Query("long", LONG)
    document = Document("d", "a " * (LIMITS.max_length - 4 - 1))
    results = list(load(made["bge"][0]).score_groups([DocumentGroup(document, (short, long))]))
    assert [result.document_truncated for result in results if isinstance(result, ScoredPair)] == [False, True]


def test_bits_do_not_depend_on_what_is_beside(reranker: BatchedReranker) -> None:
    """However pairs are shuffled and partitioned."""
    words = random.Random(2)
    pairs = [
        (Query(f"q{n % 7}", " ".join(words.choices(encoders.WORDS, k=1 + n % 9))),
         Document(f"d{n}", " ".join(words.choices(encoders.WORDS, k=words.choice([1, 3, 20, 21, 60, 150])))))
        for n in range(60)
    ]  # fmt: skip
    expected = pair_logits(reranker, pairs).tolist()
    for seed in range(3):
        order = random.Random(seed).sample(range(len(pairs)), len(pairs))
        first = seed * 17 + 1
        for part in (order[:first], order[first : first + 1], order[first + 1 :]):
            result = pair_logits(reranker, [pairs[place] for place in part]).tolist()
            assert result == [expected[place] for place in part]


def test_faults_are_rejects_and_harm_nobody(reranker: BatchedReranker, make_image: Callable[..., bytes]) -> None:
    image = make_image(60, 60)
    queries = (*QUERIES[:1], Query("empty", " "), Query("seen", image=image), Query("both", "text", image=image))
    documents = [
        Document("good", "water"),
        Document("blank", "\n"),
        Document("page", image=image),
        Document("both", "text", image=b"no image at all"),
        Document("surrogate", "secret \ud800"),
    ]
    results = list(reranker.score_groups([DocumentGroup(document, queries) for document in documents]))
    assert [(r.doc_id, r.query_id) for r in results] == [(d.doc_id, q.query_id) for d in documents for q in queries]
    reasons = {(r.doc_id, r.query_id): r.reason for r in results if isinstance(r, Reject)}
    unsupported = RejectReason.MODALITY_UNSUPPORTED
    of_documents = {
        "blank": RejectReason.EMPTY_DOCUMENT,
        "page": unsupported,
        "both": unsupported,
        "surrogate": RejectReason.TEXT_UNDECODABLE,
    }
    of_queries = {"empty": RejectReason.EMPTY_QUERY, "seen": unsupported, "both": unsupported}
    assert reasons == {
        **{("good", query): reason for query, reason in of_queries.items()},
        **{(doc, query.query_id): reason for doc, reason in of_documents.items() for query in queries},
    }
    assert not any("secret" in result.detail for result in results if isinstance(result, Reject))


class Counting:
    """A tokenizer that keeps the texts it was given."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer, self.texts = plain_tokenizer(folder), list[str]()

    def get_vocab(self) -> dict[str, int]:
        vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        return vocabulary

    def encode(self, text: str, **options: Any) -> Any:
        self.texts.append(text)
        return self._tokenizer.encode(text, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_names_of_tensors_are_renamed_one_to_one(family: str, made: dict[str, Any]) -> None:
    folder, naming = made[family][0], {"bge": BGE, "jina": JINA}[family]
    stored = load_file(folder / "model.safetensors").keys()
    assert {naming.stored_name(naming.transformers_name(name)) for name in stored} == stored
    config = read_json(folder / "config.json")
    assert tensor_shapes(read_shape(config), naming, read_head(folder, config)).keys() <= stored


def test_a_document_is_tokenised_once_and_so_is_a_query(made: dict[str, Any]) -> None:
    tokenizer, limits = Counting(made["jina"][0]), PairLimits(JINA_PAIR, LIMITS.max_length, LIMITS.max_query_length)
    arrange = functools.partial(document_windows, limits)
    identity = CheckpointIdentity("", "", 0, 0, limits=LIMITS)
    preprocessor = Preprocessor(PairTokenizer(tokenizer, limits), identity, None, arrange=arrange)
    pair_logits(replace(load(made["jina"][0]), preprocessor=preprocessor), PAIRS)
    texts = [*(query.text for query in QUERIES), *(document.text for document in DOCUMENTS)]
    assert sorted(tokenizer.texts) == sorted(texts)


def test_groups_are_pulled_as_needed(reranker: BatchedReranker) -> None:
    pulled = 0

    def groups() -> Iterator[DocumentGroup]:
        nonlocal pulled
        while True:
            pulled += 1
            yield DocumentGroup(Document(str(pulled), "water " * 60), QUERIES[:1])

    results = reranker.score_groups(groups())
    assert pulled == 0
    next(results)
    assert pulled * 60 < 6 * BATCHES_SORTED * BUSY_TOKENS_CPU, "no more than is sorted together, and as much ahead"
    results.close()


def test_work_is_counted(made: dict[str, Any]) -> None:
    loaded = load(made["bge"][0])
    result = list(loaded.score_groups([DocumentGroup(document, QUERIES) for document in DOCUMENTS]))
    work = loaded.counters
    assert work.pairs == len(PAIRS)
    assert work.documents == len(DOCUMENTS)
    assert work.pairwise == sum(r.query_tokens + r.document_tokens for r in result if isinstance(r, ScoredPair))
    assert work.computed == work.pairwise + work.padding
    most = max(32 * 2, work.pairwise / 8)
    assert 0 <= work.padding <= most, "a micro-batch is padded to one of few numbers of rows, and nothing else is"
    assert work.flops > 0
    assert work.suffix_s > 0


class Limited(PackedEncoder):
    """An encoder on a device that holds `capacity` tokens at once; `batches`: sequences of each call."""

    def __init__(self, shape: Any, weights: Any, capacity: float = float("inf"), pause_s: float = 0.0) -> None:
        super().__init__(shape, weights)
        self._capacity, self._pause_s = capacity, pause_s
        self._lock = threading.Lock()
        self.now = self.most = self.computed = 0
        self.batches: list[int] = []

    def logits(self, token_ids: torch.Tensor, positions: Any, lengths: Any, varlen: Any = None) -> torch.Tensor:
        with self._lock:
            self.now += len(token_ids)
            self.most, self.computed = max(self.most, self.now), self.computed + len(token_ids)
            self.batches.append(len(lengths))
            short = self.now > self._capacity
        try:
            time.sleep(self._pause_s)  # so that micro-batches meet
            if short:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return super().logits(token_ids, positions, lengths, varlen)
        finally:
            with self._lock:
                self.now -= len(token_ids)


class Broken(PackedEncoder):
    """An encoder that fails in a way that is no pair's fault."""

    def logits(self, *_: Any) -> torch.Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def engine_of(loaded: BatchedReranker, folder: Path, kind: Any, threads: int = 1, **options: Any) -> EncoderEngine:
    """An engine with another kind of encoder, of the weights in a folder."""
    shape = loaded.engine.encoder.shape
    head = read_head(folder, read_json(folder / "config.json"))
    weights = load_weights(folder, shape, BGE, head, torch.float32, torch.device("cpu"))
    torch.set_num_threads(threads)
    return EncoderEngine(kind(shape, weights), loaded.engine.tokens, **options)


def alike(query: np.ndarray, document: np.ndarray, length: int, count: int) -> tuple[tuple[Window, ...], ...]:
    """Pairs of one window each."""
    return ((Window(query, document, length),),) * count


def test_out_of_memory_takes_less_and_rejects_what_never_fits(made: dict[str, Any]) -> None:
    folder = made["bge"][0]
    free = load(folder)
    engine = engine_of(free, folder, functools.partial(Limited, capacity=96))
    groups = [DocumentGroup(document, QUERIES) for document in DOCUMENTS]
    results = list(replace(free, engine=engine).score_groups(groups))
    refused = {result.doc_id for result in results if isinstance(result, Reject)}
    assert {result.reason for result in results if isinstance(result, Reject)} == {RejectReason.OUT_OF_MEMORY}
    assert refused == {"d-cut", "d-longer"}
    kept = {(r.query_id, r.doc_id): r.logit for r in free.score_groups(groups) if isinstance(r, ScoredPair)}
    assert all(kept[r.query_id, r.doc_id] == r.logit for r in results if isinstance(r, ScoredPair))
    assert engine.batcher.budget.tokens <= 128, "micro-batches to come are smaller"


@pytest.mark.usefixtures("threads_restored")
def test_out_of_memory_of_concurrent_micro_batches_makes_those_to_come_smaller(made: dict[str, Any]) -> None:
    """A device that holds one micro-batch and not two."""
    folder = made["bge"][0]
    engine = engine_of(load(folder), folder, functools.partial(Limited, capacity=256, pause_s=0.01), threads=2)
    engine.batcher.budget = Budget(256)
    (logits,) = engine.score([DocumentWindows(alike(np.arange(5, 15), np.arange(5, 55), 64, 80))])
    assert len(logits) == 80
    assert len(set(logits)) == 1
    assert engine.batcher.budget.tokens == 128
    assert engine.encoder.computed < 64 * 80 * 2, "what fits is not tried again and again"


@pytest.mark.usefixtures("threads_restored")
def test_long_sequences_are_no_more_at_once_than_memory_has_room_for(made: dict[str, Any]) -> None:
    folder = made["bge"][0]
    engine = engine_of(load(folder), folder, functools.partial(Limited, pause_s=0.02), threads=2, free_tokens=128)
    engine.batcher.budget = Budget(64)
    long = alike(np.arange(5, 15), np.arange(5, 87), 96, 4)
    engine.score([DocumentWindows((*long, *alike(np.arange(5), np.arange(23), 32, 8)))])
    assert engine.encoder.most == 128, "two micro-batches of the budget, but one of the long ones"


@pytest.mark.usefixtures("threads_restored")
@pytest.mark.parametrize(
    ("pairs", "batches"),
    [(alike(np.arange(20), np.arange(40), 64, 6), [2, 2, 2]), (alike(np.arange(5), np.arange(7), 16, 5), [1, 4])],
)
def test_few_pairs_have_all_threads(made: dict[str, Any], pairs: Any, batches: list[int]) -> None:
    folder = made["bge"][0]
    engine = engine_of(load(folder), folder, Limited, threads=3)
    engine.score([DocumentWindows(pairs)])
    assert sorted(engine.encoder.batches) == batches


def test_another_error_is_no_reject(made: dict[str, Any]) -> None:
    loaded = load(made["bge"][0])
    broken = replace(loaded, engine=engine_of(loaded, made["bge"][0], Broken))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        list(broken.score_groups([DocumentGroup(DOCUMENTS[0], QUERIES)]))


def test_a_logit_that_is_no_number_is_a_reject(family: str, made: dict[str, Any], tmp_path: Path) -> None:
    """One window of a document that is not finite is enough."""
    folder = copy(made[family][0], tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tokenizer = plain_tokenizer(folder)
    tensors["roberta.embeddings.word_embeddings.weight"][tokenizer.token_to_id("▁bridge")] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    documents = (Document("good", "water"), Document("bad", "the bridge" + " water" * 200))
    good, bad = load(folder).score_groups([DocumentGroup(document, QUERIES[:1]) for document in documents])
    assert isinstance(good, ScoredPair)
    assert isinstance(bad, Reject)
    assert bad.reason == RejectReason.NON_FINITE_LOGIT


def copy(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target / "copy"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("classifier.dense.bias"), "1 missing: classifier.dense.bias"),
        (lambda tensors: tensors.update({"roberta.pooler.dense.weight": torch.zeros(2, 2)}), "1 unexpected"),
        (lambda tensors: tensors.update({"classifier.out_proj.bias": torch.zeros(2)}), "of another shape"),
    ],
)
def test_keys_that_do_not_fit_are_refused(
    family: str, made: dict[str, Any], tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    folder = copy(made[family][0], tmp_path)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_the_other_naming_is_refused_when_forced(made: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="unexpected"):
        load(made["bge"][0], family="jina-reranker-v2")
    with pytest.raises(CheckpointError, match="unexpected"):
        load(made["jina"][0], family="bge-reranker")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"num_labels": 2}, "2 labels"),
        ({"num_attention_heads": 3}, "does not divide"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"vocab_size": 20}, "an embedding of 20"),
    ],
)
def test_configs_that_are_not_computed_are_refused(
    made: dict[str, Any], tmp_path: Path, setting: dict[str, Any], message: str
) -> None:
    folder = copy(made["bge"][0], tmp_path)
    config = json.loads((folder / "config.json").read_text()) | setting
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_families_and_limits_by_config(made: dict[str, Any]) -> None:
    names = {name: identify(CheckpointSpec(str(folder))).family for name, (folder, _) in made.items()}
    assert names == {"bge": "bge-reranker", "jina": "jina-reranker-v2"}
    bge = str(made["bge"][0])
    assert identify(CheckpointSpec(bge)).limits.max_length == 256, "no more than there are positions"
    assert identify(CheckpointSpec(bge, max_length=64)).fingerprint != identify(CheckpointSpec(bge)).fingerprint
    with pytest.raises(CheckpointError, match="256 positions"):
        identify(CheckpointSpec(bge, max_length=300))


def test_the_last_position_is_used(made: dict[str, Any]) -> None:
    folder, network = made["bge"]
    loaded = load(folder, max_length=256, limits=Limits())
    tokenizer = plain_tokenizer(folder)
    document = "water river " * 300
    sequence = [*tokenizer.encode("red", document).ids[:255], 2]
    assert pair_logits(loaded, [(Query("q", "red"), Document("d", document))]) == pytest.approx(
        one_logit(network, sequence), abs=1e-5
    )


def test_half_precision_is_near(family: str, made: dict[str, Any]) -> None:
    exact, rough = (pair_logits(load(made[family][0], dtype=dtype), PAIRS) for dtype in ("float32", "bfloat16"))
    assert np.abs(exact - rough).max() < 0.15
    assert (exact != rough).any()


def test_micro_batches_of_any_size_give_the_same_bits(made: dict[str, Any]) -> None:
    wide, narrow = load(made["jina"][0]), load(made["jina"][0])
    narrow.engine.batcher.budget = Budget(64)
    assert pair_logits(narrow, PAIRS).tolist() == pair_logits(wide, PAIRS).tolist()


@pytest.mark.usefixtures("threads_restored")
def test_threads_run_micro_batches_of_their_own_and_change_no_bit(made: dict[str, Any]) -> None:
    alone = pair_logits(load(made["bge"][0]), PAIRS).tolist()
    for threads in (2, 3):
        loaded = load(made["bge"][0], device_threads=threads)
        assert torch.get_num_threads() == threads, "the process's threads are what they were set to"
        loaded.engine.batcher.budget = Budget(128)
        assert pair_logits(loaded, PAIRS).tolist() == alone
        assert loaded.engine.group_tokens == BATCHES_SORTED * 128 * threads


def test_a_kernel_for_any_lengths_gives_the_same(made: dict[str, Any]) -> None:
    """What a GPU's kernels are given: all rows at once, padding as a sequence of its own."""
    plain = load(made["bge"][0])
    packed = replace(plain, engine=EncoderEngine(plain.engine.encoder, plain.engine.tokens, varlen=varlen))
    np.testing.assert_allclose(pair_logits(packed, PAIRS), pair_logits(plain, PAIRS), atol=1e-5, rtol=0)
