"""The reranker: lazily pulled groups, one result a pair, every fault a reject with its code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lakerank.errors import CheckpointError
from lakerank.model.api import load_reranker
from lakerank.model.engine.budget import BUSY_TOKENS_CPU, LEAST_TOKENS, PREFIX_BATCHES, Budget
from lakerank.model.engine.counters import Counters, DeviceTimer
from lakerank.model.engine.device import default_host_threads
from lakerank.model.engine.reranker import BatchedReranker
from lakerank.records import Document, DocumentGroup, Query, Reject, RejectReason, ScoredPair
from oracles.pairs import pair_logits

QUERIES = (Query("q1", text="red apple"), Query("q2", text="table"))


@pytest.fixture(scope="module")
def reranker(tiny_checkpoint: Path) -> BatchedReranker:
    loaded = load_reranker(str(tiny_checkpoint), device="cpu").reranker
    assert isinstance(loaded, BatchedReranker)
    return loaded


def test_one_result_a_pair_in_order(reranker: BatchedReranker) -> None:
    groups = [DocumentGroup(Document(f"d{number}", text=f"apple {number}"), QUERIES) for number in range(5)]
    results = list(reranker.score_groups(groups))
    assert [(result.doc_id, result.query_id) for result in results] == [
        (f"d{number}", query.query_id) for number in range(5) for query in QUERIES
    ]


def test_groups_are_pulled_as_needed(reranker: BatchedReranker) -> None:
    pulled = 0

    def groups() -> Iterator[DocumentGroup]:
        nonlocal pulled
        while True:
            pulled += 1
            yield DocumentGroup(Document(str(pulled), text="apple " * 60), QUERIES)

    results = reranker.score_groups(groups())
    assert pulled == 0
    next(results)
    assert pulled * 60 < 4 * BUSY_TOKENS_CPU * PREFIX_BATCHES, "no more than keeps the device busy"
    results.close()


def test_every_fault_is_a_reject_and_harms_nobody(reranker: BatchedReranker, make_image: Callable[..., bytes]) -> None:
    queries = (*QUERIES, Query("empty", text=" "), Query("broken", image=b"\x89PNG\r\n\x1a\nno"))
    documents = {
        "good": Document("good", text="A red apple"),
        "blank": Document("blank", text="\n"),
        "strange": Document("strange", image=b"hello"),
        "cut": Document("cut", image=make_image(90, 90)[:-100]),
        "after": Document("after", image=make_image(90, 90)),
    }
    results = list(reranker.score_groups(DocumentGroup(document, queries) for document in documents.values()))
    assert len(results) == len(documents) * len(queries)
    reasons = {(r.doc_id, r.query_id): r.reason for r in results if isinstance(r, Reject)}
    per_query = {"empty": RejectReason.EMPTY_QUERY, "broken": RejectReason.IMAGE_UNDECODABLE}
    per_document = {
        "blank": RejectReason.EMPTY_DOCUMENT,
        "strange": RejectReason.IMAGE_UNSUPPORTED_FORMAT,
        "cut": RejectReason.IMAGE_UNDECODABLE,
    }
    expected = {(d, q): reason for q, reason in per_query.items() for d in ("good", "after")}
    expected |= {(d, q.query_id): reason for d, reason in per_document.items() for q in queries}
    assert reasons == expected
    alone = pair_logits(reranker, [(query, documents["good"]) for query in QUERIES])
    beside = [r.logit for r in results if isinstance(r, ScoredPair) and r.doc_id == "good"]
    assert beside == alone.tolist()


def test_details_hold_no_text(reranker: BatchedReranker) -> None:
    secret = "secret \ud800"
    (result,) = reranker.score_groups([DocumentGroup(Document("d", text=secret), QUERIES[:1])])
    assert isinstance(result, Reject)
    assert result.reason == RejectReason.TEXT_UNDECODABLE
    assert "secret" not in result.detail


def test_truncation_is_flagged(tiny_checkpoint: Path, reranker: BatchedReranker) -> None:
    long = " ".join(str(number) for number in range(9000))
    group = DocumentGroup(Document("d", text=long), (Query("short", text="apple"), Query("long", text=long)))
    short, cut = reranker.score_groups([group])
    assert isinstance(short, ScoredPair)
    assert isinstance(cut, ScoredPair)
    assert (short.document_truncated, short.query_truncated) == (True, False)
    assert (cut.document_truncated, cut.query_truncated) == (True, True)
    assert cut.document_tokens + cut.query_tokens <= 10240


def test_an_unknown_device_is_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="device 'cuda:99'"):
        load_reranker(str(tiny_checkpoint), device="cuda:99")


@pytest.mark.parametrize(
    ("device", "environment", "threads"),
    [("cpu", {"OMP_NUM_THREADS": "8"}, 2), ("cuda", {"OMP_NUM_THREADS": "8"}, 7),
     ("cuda:1", {"OMP_NUM_THREADS": "64"}, 16), ("cuda", {"OMP_NUM_THREADS": "2,1"}, 2),
     ("cuda", {"GPUS": "1"}, 11),
     ("cuda", {"OMP_NUM_THREADS": "1", "GPUS": "3"}, 3)],
)  # fmt: skip
def test_a_gpu_has_all_but_one_of_its_tasks_cores_to_prepare_its_inputs(
    monkeypatch: pytest.MonkeyPatch, device: str, environment: dict[str, str], threads: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)))
    monkeypatch.setattr("torch.cuda.device_count", lambda: int(environment.get("GPUS", "0")))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert default_host_threads(torch.device(device)) == threads


def test_a_call_is_launched_before_the_one_before_it_is_read(reranker: BatchedReranker) -> None:
    engine: Any = reranker.engine
    groups = [DocumentGroup(Document(f"d{number}", text=f"apple {number} " * 40), QUERIES) for number in range(6)]
    calls: list[tuple[str, int]] = []

    def launch(inputs: Sequence[Any]) -> Callable[[], Any]:
        number = sum(what == "launched" for what, _ in calls)
        calls.append(("launched", number))
        read = engine.launch(inputs)
        return lambda: (calls.append(("read", number)), read())[1]

    usual, engine.batcher.budget = engine.batcher.budget, Budget(LEAST_TOKENS)
    expected = [*reranker.score_groups(groups)]
    assert [*replace(reranker, launch=launch).score_groups(groups)] == expected
    engine.batcher.budget = usual
    last = calls[-1][1]
    assert last >= 2
    between = [step for number in range(last) for step in (("launched", number + 1), ("read", number))]
    assert calls == [("launched", 0), *between, ("read", last)]


def test_stages_of_a_call_that_still_runs_are_counted_later() -> None:
    class Event:
        def __init__(self, at: float, done: bool = True) -> None:
            self.at, self.done = at, done

        def query(self) -> bool:
            return self.done

        def elapsed_time(self, end: Event) -> float:
            return end.at - self.at

    timer = DeviceTimer(torch.device("cpu"), Counters())
    running = Event(9000, done=False)
    timer._events.extend([("vision_s", Event(0), Event(2000)), ("prefix_s", Event(2000), running)])  # type: ignore[list-item]
    timer.collect()
    assert (timer._counters.vision_s, timer._counters.prefix_s) == (2, 0)
    running.done = True
    timer.collect()
    assert (timer._counters.vision_s, timer._counters.prefix_s) == (2, 7)
