"""A Haystack ranker component, for a pipeline after its retriever."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lakerank.model.api import RerankModel, load_reranker

try:
    from haystack import Document, component, default_from_dict, default_to_dict
except ImportError as error:
    raise ImportError(f"{error}: pip install haystack-ai") from error


@component
class LakerankRanker:
    """Gives the `top_k` most relevant documents, best first; their score is the relevance, in [0, 1].

    A document is its `content`, and its `blob` where that is an image. One that cannot be scored comes after all
    others, with no score; `score_threshold` drops it, as it drops those below. The model is loaded by `warm_up`.
    """

    def __init__(
        self,
        model: str,
        *,
        top_k: int = 10,
        score_threshold: float | None = None,
        load_options: dict[str, Any] | None = None,
    ) -> None:
        """`model` and `load_options` are the arguments of `load_reranker`. Raises ValueError: `top_k` is under 1."""
        self.model, self.top_k, self.score_threshold = str(model), _positive(top_k), score_threshold
        self.load_options = load_options or {}
        self._reranker: RerankModel | None = None

    def warm_up(self) -> None:
        """Load the model, once."""
        self._loaded()

    def _loaded(self) -> RerankModel:
        self._reranker = self._reranker or load_reranker(self.model, **self.load_options)
        return self._reranker

    def to_dict(self) -> dict[str, Any]:
        """The component for a pipeline's YAML."""
        options = {"top_k": self.top_k, "score_threshold": self.score_threshold, "load_options": self.load_options}
        return dict(default_to_dict(self, model=self.model, **options))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LakerankRanker:
        """The component of `to_dict`."""
        ranker: LakerankRanker = default_from_dict(cls, data)
        return ranker

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, documents: list[Document], top_k: int | None = None, score_threshold: float | None = None
    ) -> dict[str, list[Document]]:
        """Copies of the documents by relevance to the query; of several with one id the first."""
        first: dict[str, Document] = {}
        for document in documents:
            first.setdefault(document.id, document)
        unique = [*first.values()]
        threshold = self.score_threshold if score_threshold is None else score_threshold
        top_k = self.top_k if top_k is None else _positive(top_k)
        items = self._loaded().rank(query, [_content(document) for document in unique], top_k=top_k, errors="null")
        kept = [
            item for item in items if threshold is None or (item.relevance is not None and item.relevance >= threshold)
        ]
        return {"documents": [replace(unique[item.index], score=item.relevance) for item in kept]}


def _content(document: Document) -> dict[str, Any]:
    image = document.blob is not None and (document.blob.mime_type or "").startswith("image/")
    return {"text": document.content, "image": document.blob.data if image else None}


def _positive(top_k: int) -> int:
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}; expected 1 or more")
    return top_k
