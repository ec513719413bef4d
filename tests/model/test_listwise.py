"""jina-reranker-v3, -v3.5 and a chat model that writes orders, against the published loops, on lists of every kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints.listwise import write_jina_v3, write_lister
from lakerank import load_reranker
from lakerank.limits import Listwise
from lakerank.records import CandidateList, Document, Query
from oracles.listwise import PublishedJinaV3

#: On both sides of the engine's boundaries: texts that begin and end with what tokens could reach across.
TEXTS = [
    "The red apple lies there.", "x", "\n\n (memory)\n\n kernel  disk ", "apple " * 30, "яблоко りんご תפוח " * 3,
    "history of the bridge and the river " * 20, "memory kernel " * 90, "}{n} <|im_end|> <|embed_token|>", "  …",
]  # fmt: skip
QUERY = "red apple\n(where)?"
LENGTHS = {None: (512, 2048), 64: (1024, 8192)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("listwise")
    return {
        "v3": write_jina_v3(base / "v3"),
        "v3.5": write_jina_v3(base / "v3.5", window=64),
        "lister": write_lister(base / "lister"),
    }


def load(folder: Path, **options: Any) -> Any:
    family = "list-generation" if folder.name == "lister" else None
    return load_reranker(folder, device="cpu", dtype="float32", family=family, **options)


def listed(texts: Sequence[str | None], query: str = QUERY, **of_query: Any) -> CandidateList:
    documents = tuple(Document(f"d{n}", text=text) for n, text in enumerate(texts))
    return CandidateList(Query("q", text=query, **of_query), documents)


def logits(model: Any, candidates: CandidateList) -> np.ndarray:
    """Logits (N,) of a list, all of whose documents can be scored, in order."""
    results = [*model.reranker.score_lists([candidates])]
    assert [one.doc_id for one in results] == [document.doc_id for document in candidates.documents]
    return np.array([one.logit for one in results], dtype=np.float32)


def cosines(of_list: np.ndarray) -> np.ndarray:
    return np.tanh(of_list / 2)


@pytest.mark.parametrize("name", ["v3", "v3.5"])
@pytest.mark.parametrize("block", [None, 4])
def test_cosines_are_the_published_loops(folders: dict[str, Path], name: str, block: int | None) -> None:
    texts = TEXTS[:7] if name == "v3" else TEXTS[:7] + TEXTS[-1:]
    loop = PublishedJinaV3(folders[name], block=block or 125, lengths=LENGTHS[64 if name == "v3.5" else None])
    model = load(folders[name], listwise=None if block is None else Listwise(window=block))
    for instruction in (None, "Prefer (fruit)!"):
        expected = loop.scores(QUERY, texts, instruction)
        assert np.ptp(expected) > 0.1
        ours = logits(model, listed(texts, instruction=instruction))
        assert np.abs(cosines(ours) - expected).max() < 1e-4
        relevances = model.relevance(ours)
        np.testing.assert_allclose(relevances, (1 + expected) / 2, atol=1e-4)
