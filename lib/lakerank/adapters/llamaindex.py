"""A LlamaIndex node postprocessor, for `node_postprocessors` of a query engine."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PlainValidator

from lakerank.model.api import loaded

try:
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import ImageNode, MetadataMode, NodeWithScore, QueryBundle
except ImportError as error:
    raise ImportError(f"{error}: pip install llama-index-core") from error


class LakerankRerank(BaseNodePostprocessor):
    """Keeps the `top_n` most relevant nodes, best first; their score is the relevance, in [0, 1].

    A node that cannot be scored comes after all others, with no score. An ImageNode is read from its `image` or
    `image_path`; a URL is not fetched. `model`: a RerankModel, or what `load_reranker` loads one from.
    `keep_retrieval_score`: leave the score that a node came with in its metadata.
    """

    model: Annotated[Any, PlainValidator(loaded)] = Field(exclude=True)
    top_n: int = Field(default=2, ge=1)
    keep_retrieval_score: bool = False

    @classmethod
    def class_name(cls) -> str:
        """The name that it is serialised under."""
        return "LakerankRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ValueError("a query is needed to rerank: give query_str or query_bundle")
        query = {"text": query_bundle.query_str or None, "image": _path(query_bundle.image_path)}
        result = []
        for item in self.model.rank(query, [_content(node) for node in nodes], top_k=self.top_n, errors="null"):
            node = nodes[item.index]
            if self.keep_retrieval_score:
                node.node.metadata["retrieval_score"] = node.score
            result.append(NodeWithScore(node=node.node, score=item.relevance))
        return result


def _content(node: NodeWithScore) -> dict[str, Any]:
    text = node.node.get_content(metadata_mode=MetadataMode.EMBED) or None
    if not isinstance(node.node, ImageNode):
        return {"text": text}
    image = node.node.image
    data = image if isinstance(image, bytes) else base64.b64decode(image) if image else None
    return {"text": node.node.text or None, "image": data or _path(node.node.image_path)}


def _path(path: str | None) -> Path | None:
    return Path(path) if path else None
