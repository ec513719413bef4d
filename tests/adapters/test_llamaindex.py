"""The LlamaIndex adapter on nodes of LlamaIndex's own."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import pytest
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import ImageNode, NodeWithScore, QueryBundle, TextNode

from lakerank import RerankModel
from lakerank.adapters.llamaindex import LakerankRerank

pytestmark = pytest.mark.nightly  # the library takes seconds to import


def nodes() -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(text=text), score=0.5) for text in ("aa", "", "a", "aaaa")]


def test_nodes_are_reranked_and_keep_what_they_are_told_to(model: RerankModel) -> None:
    reranker = LakerankRerank(model=model, top_n=4, keep_retrieval_score=True)
    assert isinstance(reranker, BaseNodePostprocessor)
    given = nodes()
    ranked = reranker.postprocess_nodes(given, query_str="q")
    assert [node.node.text for node in ranked] == ["aaaa", "aa", "a", ""]
    assert ranked[0].score > ranked[1].score > ranked[2].score == pytest.approx(0.5)
    assert ranked[3].score is None
    assert ranked[0].node.metadata == {"retrieval_score": 0.5}
    assert [node.score for node in given] == [0.5] * 4
    (first, second) = asyncio.run(LakerankRerank(model=model).apostprocess_nodes(nodes(), QueryBundle("q")))
    assert (first.node.text, second.node.text) == ("aaaa", "aa")
    with pytest.raises(ValueError, match="a query is needed"):
        reranker.postprocess_nodes(nodes())


def test_image_nodes_are_read_and_urls_are_not(model: RerankModel, tmp_path: Path) -> None:
    (tmp_path / "page.png").write_bytes(b"x" * 7)
    images = [
        ImageNode(image=base64.b64encode(b"x" * 9).decode()),
        ImageNode(image_path=str(tmp_path / "page.png")),
        ImageNode(image_url="http://127.0.0.1:1/a.png"),
    ]
    given = [NodeWithScore(node=node) for node in images]
    query = QueryBundle("", image_path=str(tmp_path / "page.png"))
    ranked = LakerankRerank(model=model, top_n=3).postprocess_nodes(given, query)
    assert [node.node for node in ranked] == images
    assert [node.score is None for node in ranked] == [False, False, True]
    assert ranked[1].score == pytest.approx(0.5)


def test_serialised_without_the_model(model: RerankModel) -> None:
    assert LakerankRerank(model=model).to_dict()["class_name"] == "LakerankRerank"
    assert "model" not in LakerankRerank(model=model).to_dict()
