"""The hosted API's JSON: checked as a whole, scored, sorted; images come from nowhere that was not allowed."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from running import running

from lakerank.errors import ConfigError, PairRejected
from lakerank.model.api import load_reranker
from lakerank.model.request import answer as answer_parsed
from lakerank.model.request import fetch, parse
from lakerank.records import Document, DocumentGroup, Query, Reject, RejectReason, ScoredPair


class Lengths:
    """Scores a document by the length of what it holds."""

    logit_bias = 2.0

    def score_groups(self, groups: Iterable[DocumentGroup]) -> Iterator[ScoredPair | Reject]:
        for group in groups:
            buffered = len(group.document.text or "") + len(group.document.image or b"")
            for query in group.queries:
                if group.document.text == "bad":
                    yield Reject(query.query_id, group.document.doc_id, RejectReason.EMPTY_DOCUMENT)
                else:
                    yield ScoredPair(query.query_id, group.document.doc_id, float(buffered), 3, 10, False, False)


def answer(request: dict[str, Any], reranker: Any, allowed_hosts: tuple[str, ...] = ()) -> dict[str, Any]:
    """The response of a model that is configured as `models/m`."""
    parsed = parse(request, "models/m", allowed_hosts)
    return answer_parsed(parsed, reranker, "models/m", reranker.logit_bias, allowed_hosts)


@pytest.mark.parametrize("name", ["models/m", "m", None])
def test_the_answer_names_the_model_that_scored(name: str | None) -> None:
    assert answer({"model": name, "query": "q", "documents": ["a"]}, Lengths())["model"] == "models/m"
    assert answer({"query": "q", "documents": ["a"]}, Lengths())["model"] == "models/m"


@pytest.mark.parametrize("name", ["jina-reranker-m0", "", "models", "M"])
def test_another_models_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"model: '{name}' is not the configured model, 'models/m'"):
        parse({"model": name, "query": "q", "documents": ["a"]}, "models/m")


def test_an_instruction_has_two_names() -> None:
    request = {"query": "q", "documents": ["a"], "top_n": None, "model": None}
    assert parse({**request, "instruction": None}, "m").instruction is None
    for name in ("instruction", "instruct"):
        assert parse({**request, name: "find code"}, "m").instruction == "find code"
    with pytest.raises(ConfigError, match=r"instruction: .*valid string"):
        parse({**request, "instruction": 3}, "m")


@pytest.mark.parametrize("top_n", [0, -1, "2", 1.5, True])
def test_top_n_is_a_positive_number(top_n: Any) -> None:
    with pytest.raises(ConfigError, match=r"^top_n: "):
        parse({"query": "q", "documents": ["a"], "top_n": top_n}, "m")
    assert len(answer({"query": "q", "documents": ["a", "b"], "top_n": 9}, Lengths())["results"]) == 2


def test_unknown_fields_are_told_with_those_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"query": {"text": "q", "url": "x"}, "documents": ["a"], "top_k": 3}, "m")
    assert caught.value.faults == (
        "query.url: no such field; there are text, image",
        "top_k: no such field; there are model, query, documents, top_n, return_documents, instruction",
    )


def test_results_are_sorted_and_counted() -> None:
    response = answer({"model": "m", "query": "q", "documents": ["a", "aaa", {"text": "aa"}]}, Lengths())
    assert [result["index"] for result in response["results"]] == [1, 2, 0]
    scores = [result["relevance_score"] for result in response["results"]]
    assert scores == pytest.approx([1 / (1 + math.exp(-(length - 2))) for length in (3, 2, 1)])
    assert response["usage"] == {"total_tokens": 39}
    assert "document" not in response["results"][0]


def test_top_n_and_documents() -> None:
    request = {"query": "q", "documents": ["a", {"text": "aaa"}], "top_n": 1, "return_documents": True}
    (result,) = answer(request, Lengths())["results"]
    assert result["document"] == {"text": "aaa"}


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_images_are_decoded(prefix: str) -> None:
    image = prefix + base64.b64encode(b"x" * 9).decode()
    response = answer({"query": {"text": "q"}, "documents": ["a", {"image": image}]}, Lengths())
    assert [result["index"] for result in response["results"]] == [1, 0]


def test_all_faults_are_listed_without_their_values() -> None:
    request = {
        "query": {},
        "documents": ["a", {"image": "!secret!"}, 7, {"image": "https://example.org/a.png"}, {"txt": "a"}],
        "top_n": 0,
        "more": 1,
    }
    with pytest.raises(ConfigError) as caught:
        answer(request, Lengths())
    faults = caught.value.faults
    assert {fault.split(":")[0] for fault in faults} == {
        "query",
        "documents.1.image",
        "documents.2",
        "documents.4.txt",
        "top_n",
        "more",
    }
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="documents: List should have at least 1 item"):
        answer({"query": "q", "documents": []}, Lengths())


def test_urls_are_refused_unless_allowed() -> None:
    request = {"query": {"image": "http://a.example/q.png"}, "documents": [{"image": "HTTPS://B.example:1/d.png"}]}
    with pytest.raises(ConfigError) as caught:
        answer(request, Lengths(), allowed_hosts=("c.example",))
    assert [fault.split(":")[0] for fault in caught.value.faults] == ["query.image", "documents.0.image"]


def test_a_document_that_cannot_be_scored_is_named() -> None:
    with pytest.raises(PairRejected, match="document '1': empty_document"):
        answer({"query": "q", "documents": ["a", "bad"]}, Lengths())


def test_the_real_reranker_answers(tiny_checkpoint: Path, make_image: Callable[..., bytes]) -> None:
    reranker = load_reranker(str(tiny_checkpoint), device="cpu")
    image = make_image(60, 60)
    request = {"query": "apple", "documents": ["table", {"image": base64.b64encode(image).decode()}]}
    response = answer(request, reranker)
    query = Query("q", text="apple")
    logits = reranker.score([(query, Document("a", text="table")), (query, Document("b", image=image))])
    expected = {index: 1 / (1 + math.exp(-(logit - 2.65))) for index, logit in enumerate(logits.tolist())}
    assert {r["index"]: r["relevance_score"] for r in response["results"]} == pytest.approx(expected)


class Pages(BaseHTTPRequestHandler):
    """/image answers with bytes, /elsewhere redirects to another host, /here to /image."""

    def do_GET(self) -> None:
        port = self.server.server_address[1]
        targets = {"/elsewhere": f"http://localhost:{port}/image", "/here": "/image", "/file": "file:///etc/passwd"}
        if target := targets.get(self.path):
            self.send_response(302)
            self.send_header("Location", target)
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"x" * 100)

    def log_message(self, *args: Any) -> None:
        """Keep quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with running(HTTPServer(("127.0.0.1", 0), Pages)) as http:
        yield f"http://127.0.0.1:{http.server_address[1]}"


def test_fetching_stays_within_its_bounds(server: str) -> None:
    hosts = ("127.0.0.1",)
    assert fetch(f"{server}/image", hosts) == b"x" * 100
    assert fetch(f"{server}/here", hosts) == b"x" * 100
    with pytest.raises(ConfigError, match="more than 99 bytes"):
        fetch(f"{server}/image", hosts, max_bytes=99)
    with pytest.raises(ConfigError, match="host 'localhost' is not allowed"):
        fetch(f"{server}/elsewhere", hosts)
    with pytest.raises(ConfigError, match="is not allowed"):
        fetch(f"{server}/file", hosts)
    with pytest.raises(ConfigError, match="is not allowed"):
        fetch(f"{server}/image", ())
    request = {"query": "q", "documents": ["a", {"image": f"{server}/image"}]}
    assert answer(request, Lengths(), allowed_hosts=hosts)["results"][0]["index"] == 1
