"""Published loops of cross-encoders on random weights: the same logits as ours, and what they pad is counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lakerank import load_reranker
from lakerank.model.preprocess.tokenizer import read_tokenizer
from lakerank.records import Document, DocumentGroup, Query, ScoredPair
from lakerank_benchmark.encoder_contenders import load_padded
from lakerank_benchmark.encoder_shapes import EncoderKind, random_encoder_checkpoint
from lakerank_benchmark.runs import CannotRun
from lakerank_benchmark.workloads import build

MOST = 130

#: Contender, the library it needs, family, and how often it reads a batch: FlagEmbedding tries the first one before.
LOOPS = [
    ("published loop", "transformers", "jina-reranker-v2", 1),
    ("published loop", "FlagEmbedding", "bge-reranker", 2),
    ("CrossEncoder", "sentence_transformers", "bge-reranker", 1),
]


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "library", "family", "times"), LOOPS)
def test_a_published_loop_says_the_same(tmp_path: Path, name: str, library: str, family: str, times: int) -> None:
    pytest.importorskip(library)
    folder = random_encoder_checkpoint(tmp_path, EncoderKind(family, 64, 2, 2, 128, 262), "float32")
    workload = build("skewed", read_tokenizer(folder / "tokenizer.json"), lambda n: [], lambda n: [])
    groups = workload.groups(6, 2, stamp=1)
    ours = load_reranker(str(folder), device="cpu", max_length=MOST)
    scored = [one for one in ours.score_groups(groups) if isinstance(one, ScoredPair)]
    logits = {(one.query_id, one.doc_id): one.logit for one in scored}
    run = load_padded(name, folder, family, "float32", "cpu", MOST).run(groups)
    assert run.logits.keys() == logits.keys()
    assert run.pairs == len(scored) == 12
    np.testing.assert_allclose([run.logits[pair] for pair in logits], list(logits.values()), atol=1e-4, rtol=0)
    assert run.tokens - run.padding == times * ours.counters.pairwise, "the same tokens, those that fill apart"
    assert run.flops == pytest.approx(times * ours.counters.flops)
    assert (ours.counters.pairwise > 12 * MOST) == (family == "jina-reranker-v2"), "windows are more than a pair"


def test_images_are_not_for_it(tmp_path: Path) -> None:
    folder = random_encoder_checkpoint(tmp_path, EncoderKind("jina-reranker-v2", 64, 1, 2, 64, 70), "float32")
    contender = load_padded("published loop", folder, "jina-reranker-v2", "float32", "cpu", 64)
    with pytest.raises(CannotRun, match="texts alone"):
        contender.run([DocumentGroup(Document("d", image=b"picture"), (Query("q", "text"),))])
