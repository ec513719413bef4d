"""A LangChain document compressor, for `ContextualCompressionRetriever` and wherever else one goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import ConfigDict, Field, PlainValidator

from lakerank.model.api import loaded

try:
    from langchain_core.callbacks import Callbacks
    from langchain_core.documents import BaseDocumentCompressor, Document
except ImportError as error:
    raise ImportError(f"{error}: pip install langchain-core") from error


class LakerankReranker(BaseDocumentCompressor):
    """Keeps the `top_n` most relevant documents, best first, with `relevance_score` in their metadata.

    A document that cannot be scored comes last, its `relevance_score` None and its `reject_reason` the code.
    `model`: a RerankModel, or what `load_reranker` loads one from.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    model: Annotated[Any, PlainValidator(loaded)] = Field(exclude=True)
    top_n: int | None = Field(default=3, ge=1)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Copies of the documents by relevance to the query; those given stay as they are."""
        texts = [document.page_content for document in documents]
        result = []
        for item in self.model.rank(query, texts, top_k=self.top_n, errors="null"):
            metadata: dict[str, Any] = {"relevance_score": item.relevance}
            if item.reason is not None:
                metadata["reject_reason"] = item.reason.value
            document = documents[item.index]
            result.append(document.model_copy(update={"metadata": {**document.metadata, **metadata}}))
        return result
