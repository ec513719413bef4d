"""The Haystack component in a pipeline of Haystack's own, behind its BM25 retriever."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # read when it is imported

from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
from haystack.dataclasses import ByteStream
from haystack.document_stores.in_memory import InMemoryDocumentStore

from lakerank import RerankModel
from lakerank.adapters.haystack import LakerankRanker

pytestmark = pytest.mark.nightly  # the library takes seconds to import

TEXTS = ["apple", "apple apple tree", "apple on a table by the window"]


@pytest.fixture
def ranker(model: RerankModel) -> LakerankRanker:
    component = LakerankRanker("m", top_k=2)
    component._reranker = model
    return component


def test_a_pipeline_ranks_what_it_retrieves(tiny_checkpoint: Path) -> None:
    store = InMemoryDocumentStore()
    store.write_documents([Document(content=text) for text in TEXTS])
    pipeline = Pipeline()
    pipeline.add_component("retriever", InMemoryBM25Retriever(store))
    options = {"device": "cpu", "dtype": "float32"}
    pipeline.add_component("ranker", LakerankRanker(str(tiny_checkpoint), top_k=2, load_options=options))
    pipeline.connect("retriever.documents", "ranker.documents")
    restored = Pipeline.loads(pipeline.dumps(), allowed_modules=["lakerank.adapters.haystack"])
    assert restored.get_component("ranker").to_dict() == pipeline.get_component("ranker").to_dict()
    result = pipeline.run({"retriever": {"query": "apple"}, "ranker": {"query": "apple"}})["ranker"]["documents"]
    assert len(result) == 2
    assert 1 >= result[0].score >= result[1].score >= 0
    assert {document.content for document in result} < set(TEXTS)


def test_the_conventions_of_rankers(ranker: LakerankRanker) -> None:
    texts = [Document(content="aa"), Document(content=""), Document(content="a"), Document(content="aaaa")]
    image = Document(blob=ByteStream(b"x" * 9, mime_type="image/png"))
    other = Document(blob=ByteStream(b"x" * 99, mime_type="audio/wav"))
    documents = [*texts, image, other, texts[0]]
    assert [document.id for document in ranker.run("q", documents)["documents"]] == [image.id, texts[3].id]
    ranked = ranker.run("q", documents, top_k=9)["documents"]
    assert [document.id for document in ranked] == [
        d.id for d in (image, texts[3], texts[0], texts[2], texts[1], other)
    ]
    assert [document.score is None for document in ranked] == [False] * 4 + [True] * 2
    assert all(document.score is None for document in documents), "those given stay as they are"
    assert len(ranker.run("q", documents, top_k=9, score_threshold=0.5)["documents"]) == 4
    assert len(ranker.run("q", documents, top_k=9, score_threshold=0.6)["documents"]) == 3
    assert ranker.run("q", [])["documents"] == []
    with pytest.raises(ValueError, match="top_k is 0"):
        ranker.run("q", documents, top_k=0)
    with pytest.raises(ValueError, match="top_k is 0"):
        LakerankRanker("m", top_k=0)
