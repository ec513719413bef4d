"""Published loops of cross-encoders on random weights: the same logits as ours, and what they pad is counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from checkpoints.encoders import write_jina
from lakerank import load_reranker
from lakerank.model.preprocess.tokenizer import read_tokenizer
from lakerank.records import Document, DocumentGroup, Query, ScoredPair
from lakerank_benchmark.checkpoints import WRITERS
from lakerank_benchmark.contenders import CannotRun, load
from lakerank_benchmark.request import BERT, BGE, JINA, MODERN, Request
from lakerank_benchmark.workloads import WORDS, build

MOST = 130

#: Contender, the library it needs, family, and how often it reads a batch: FlagEmbedding tries the first one before.
LOOPS = [
    ("published loop", "transformers", JINA, 1),
    ("published loop", "FlagEmbedding", BGE, 2),
    *(("CrossEncoder", "sentence_transformers", family, 1) for family in (BGE, BERT, MODERN)),
]


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "library", "family", "times"), LOOPS)
def test_a_published_loop_says_the_same(tmp_path: Path, name: str, library: str, family: str, times: int) -> None:
    pytest.importorskip(library)
    WRITERS[family](tmp_path, 262, words=WORDS)
    workload = build("skewed", read_tokenizer(tmp_path / "tokenizer.json"), lambda n: [], lambda n: [])
    groups = workload.groups(6, 2, salt=1)
    ours = load_reranker(str(tmp_path), device="cpu", max_length=MOST).reranker
    scored = [pair for pair in ours.score_groups(groups) if isinstance(pair, ScoredPair)]
    logits = {(pair.query_id, pair.doc_id): pair.logit for pair in scored}
    run = load(name, Request(str(tmp_path), max_length=MOST)).run(groups)
    assert run.logits.keys() == logits.keys()
    assert run.pairs == len(scored) == 12
    np.testing.assert_allclose([run.logits[pair] for pair in logits], list(logits.values()), atol=1e-4, rtol=0)
    assert run.tokens - run.padding == times * ours.counters.pairwise, "the same tokens, those that fill apart"
    assert run.flops == pytest.approx(times * ours.counters.flops)
    assert (ours.counters.pairwise > 12 * MOST) == (family == JINA), "windows are more than a pair"


def test_a_family_without_a_loop_of_its_own_says_so(tmp_path: Path) -> None:
    WRITERS[BERT](tmp_path, 70)
    with pytest.raises(CannotRun, match="bert-reranker is published for CrossEncoder"):
        load("published loop", Request(str(tmp_path), max_length=64))


def test_images_are_not_for_it(tmp_path: Path) -> None:
    write_jina(tmp_path, 70)
    contender = load("published loop", Request(str(tmp_path), max_length=64))
    with pytest.raises(CannotRun, match="texts alone"):
        contender.run([DocumentGroup(Document("d", image=b"picture"), (Query("q", "text"),))])
