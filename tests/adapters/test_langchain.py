"""The LangChain adapter behind a retriever of LangChain's own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from pydantic import ValidationError

from lakerank import RerankModel
from lakerank.adapters.langchain import LakerankReranker

pytestmark = pytest.mark.nightly  # the library takes seconds to import

DOCUMENTS = [
    Document("aa", id="1", metadata={"page": 1}),
    Document(""),
    Document("a"),
    Document("aaaa"),
    Document("bb"),
]


class Fixed(BaseRetriever):
    """Finds all documents."""

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        return DOCUMENTS


def test_a_retrievers_documents_are_compressed(model: RerankModel) -> None:
    reranker = LakerankReranker(model=model, top_n=None)
    chain = Fixed() | RunnableLambda(lambda documents: reranker.compress_documents(documents, "q"))
    ranked = chain.invoke("q")
    assert [document.page_content for document in ranked] == ["aaaa", "aa", "bb", "a", ""]
    scores = [document.metadata["relevance_score"] for document in ranked]
    assert scores[:4] == sorted(scores[:4], reverse=True)
    assert (scores[4], ranked[4].metadata["reject_reason"]) == (None, "empty_document")
    assert (ranked[1].id, ranked[1].metadata["page"]) == ("1", 1)
    assert "relevance_score" not in DOCUMENTS[0].metadata, "the retriever's documents stay as they are"


def test_the_conventions_of_compressors(model: RerankModel, tiny_checkpoint: Path) -> None:
    reranker = LakerankReranker(model=model)
    assert isinstance(reranker, BaseDocumentCompressor)
    assert len(asyncio.run(reranker.acompress_documents(DOCUMENTS, "q"))) == 3
    assert reranker.compress_documents([], "q") == []
    with pytest.raises(ValidationError, match="top_n"):
        LakerankReranker(model=model, top_n=0)
    with pytest.raises(TypeError, match="model is of type int; expected a RerankModel"):
        LakerankReranker(model=5)
    loaded = LakerankReranker(model=tiny_checkpoint, top_n=1).compress_documents(DOCUMENTS, "q")
    assert 0 <= loaded[0].metadata["relevance_score"] <= 1
