"""A cascade whose strong reranker reads as far down each list as its promise takes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lakerank.errors import GuaranteeError, RunConflictError
from lakerank.lake.checksums import json_bytes
from lakerank.lake.storage import Storage
from lakerank.plan.guarantee import Promise
from lakerank.ranking import Fusion
from lakerank.records import DocumentGroup, Reject, ScoredPair
from lakerank.rerank.run import run
from lakerank.rerank.stage import Stage

from .conftest import HashFactory, HashReranker, Lake
from .test_stages import Died, DyingStorage

PROMISE = Promise(of_top=5, recall=0.9, confidence=0.9)
STRONG = "5a17"


@dataclass
class NoisyReranker(HashReranker):
    """The strong reranker's logits and so much noise; where it cannot read a document, noise alone."""

    noise: float = 0.5

    def score_groups(self, groups: Iterable[DocumentGroup]) -> Iterator[ScoredPair | Reject]:
        groups = list(groups)
        results = zip(*(HashReranker(salt).score_groups(groups) for salt in ("noise", STRONG)), strict=True)
        for pair, strong in results:
            if isinstance(pair, ScoredPair):
                logit = strong.logit if isinstance(strong, ScoredPair) else 0.0
                pair = replace(pair, logit=logit + self.noise * pair.logit)
            yield pair


@dataclass(frozen=True)
class NoisyFactory:
    noise: float = 0.5

    def __call__(self, device: str) -> NoisyReranker:
        return NoisyReranker(noise=self.noise)


QUERIES, DOCUMENTS = 120, 60


@pytest.fixture(scope="module")
def kept_once(runner, tmp_path_factory) -> Path:
    """A lake of 120 queries with thirty documents each, or three, and run r of a cascade that keeps PROMISE."""
    lake = Lake(tmp_path_factory.mktemp("kept"))
    unreadable = {7: "too much", 11: f"unreadable {STRONG}"}
    texts = [unreadable.get(i, f"document {i}") for i in range(DOCUMENTS)]
    lake.write("documents", [{"doc_id": f"d{i:02}", "text": text} for i, text in enumerate(texts)])
    lake.write("queries", [{"query_id": f"q{i:03}", "text": f"query {i}"} for i in range(QUERIES)])
    pairs = [(q, (q * 7 + k) % DOCUMENTS) for q in range(QUERIES) for k in range(3 if q % 10 == 0 else 30)]
    lake.write("candidates", [{"query_id": f"q{q:03}", "doc_id": f"d{d:02}"} for q, d in pairs])
    assert run(runner, Storage(), cascade(lake, "r"))["published"]
    return lake.folder


@pytest.fixture
def kept(tmp_path, kept_once) -> Lake:
    """A copy of it, to be changed at will."""
    shutil.copytree(kept_once, tmp_path, dirs_exist_ok=True)
    return Lake(tmp_path)


def cascade(lake, run_id: str, promise: Promise = PROMISE, noise: float = 0.5, cheap: str = "f00e", **changes):
    limits = lake.limits(unit_tokens=5000)
    stage = Stage(changes.pop("strong", STRONG), "strong", 3000, 1.0, HashFactory(STRONG), "cpu", limits, keep=promise)
    changes = {"later": stage.parts, "limits": limits, "factory": NoisyFactory(noise)} | changes
    return lake.job(run_id, model="cheap", scorer=cheap, **changes)


def passes(lake, run_id: str) -> list[dict]:
    return json.loads((lake.folder / "out" / "runs" / run_id / "manifest.json").read_text())["passes"]


def lists_of(lake, run_id: str) -> dict[str, dict[str, list[int]]]:
    """By query and document which stages have scored a pair."""
    lists: dict[str, dict[str, list[int]]] = {}
    for row in lake.ranked(run_id):
        lists.setdefault(row["query_id"], {})[row["doc_id"]] = row["scored_by"]
    return lists


def cheap_logits(lake, noise: float = 0.5) -> dict[tuple[str, str], float]:
    strong = lake.logits(STRONG)
    return {
        pair: float(np.float32(strong.get(pair, 0) + noise * logit)) for pair, logit in lake.logits("noise").items()
    }


def test_the_strong_one_reads_a_sample_whole_and_the_other_lists_down_to_the_margin(kept):
    *_, sample, rest = passes(kept, "r")
    guarantee, cheap, strong = rest["guarantee"], cheap_logits(kept), kept.logits(STRONG)
    assert guarantee["promised"] == {"of_top": 5, "recall": 0.9, "confidence": 0.9}
    assert guarantee["sample"]["queries"] == PROMISE.least_queries == 27
    assert guarantee["at_least"] >= 0.9
    sampled, found, spared, lists = set(), [], 0, lists_of(kept, "r")
    for query, scored_by in lists.items():
        order = sorted(scored_by, key=lambda doc, q=query: (-cheap[q, doc], doc))
        readable = {doc for doc in order if (query, doc) in strong}
        best = sorted(readable, key=lambda doc, q=query: (-strong[q, doc], doc))[:5]
        found.append(sum(len(scored_by[doc]) == 2 for doc in best) / len(best))
        edge = cheap[query, order[min(4, len(order) - 1)]] - guarantee["margin"]
        number, read = 3, {doc for doc in order if cheap[query, doc] >= edge}
        if any(2 in stages for stages in scored_by.values()):
            sampled.add(query)
            number, read = 2, set(order)
        assert {doc for doc, stages in scored_by.items() if stages == [1, number]} == read & readable
        spared += len(order) - len(read)
    assert len(sampled) == 27
    assert np.mean(found) >= 0.9
    assert [entry["counts"]["candidates"] for entry in (sample, rest)] == [
        guarantee["sample"]["pairs"], guarantee["read"],
    ]  # fmt: skip
    assert guarantee["spared"] == spared > 500
    assert sample["rejected"].keys() == rest["rejected"].keys() == {"input_too_long"}


def test_killed_after_the_sample_it_resumes_to_the_same_bytes_and_scores_nothing_twice(runner, storage, kept):
    names = {"strong": STRONG, "cheap": "f00d"}
    for dies_at in ("pass-2/scoring.json", "pass-3/rule.json", "pass-3/plan.json", "pass-3/scoring.json"):
        with pytest.raises(Died):
            run(runner, DyingStorage(dies_at), cascade(kept, "again", **names))
    careful = cascade(kept, "again", replace(PROMISE, otherwise="stop"), **names)
    assert run(runner, storage, careful)["pairs"] == 0, "what is done without a guarantee changes no list"
    assert kept.ranked_bytes("again") == kept.ranked_bytes("r")


def test_a_rule_that_was_learned_is_not_learned_again(runner, storage, kept):
    job = cascade(kept, "again")
    with pytest.raises(Died):
        run(runner, DyingStorage("pass-3/plan.json"), job)
    rule = kept.folder / "out/runs/again/plan/pass-3/rule.json"
    wider = {**json.loads(rule.read_bytes()), "margin": 1000.0}
    storage.replace(str(rule), json_bytes({name: value for name, value in wider.items() if name != "crc32"}))
    run(runner, storage, job)
    assert passes(kept, "again")[2]["guarantee"]["spared"] == 0


def test_the_plan_has_bounds_that_the_run_keeps(runner, storage, kept):
    job = cascade(kept, "planned", strong="0b0e", cheap="0b0f")
    planned = run(runner, storage, job, ["plan"])
    cheap, sample, rest = planned["passes"]
    assert (sample["forecast_queries"], rest["forecast_queries"]) == (27, QUERIES - 27)
    done = run(runner, storage, job)["passes"]
    unread = sum(row["doc_id"] == "d07" for row in kept.rejected("planned"))
    assert unread, "by the cheap one; they are not known of when the run is planned"
    for bound, exact in zip((sample, rest), done[1:], strict=True):
        assert bound["at_least"]["new"] - unread <= exact["new"] <= bound["new"]
        assert (
            bound["at_least"]["forecast_tokens"] - 50 * unread <= exact["forecast_tokens"] <= bound["forecast_tokens"]
        )
    assert planned["at_least"]["new"] == cheap["new"] + sample["at_least"]["new"] + rest["at_least"]["new"]
    assert planned["new"] == cheap["new"] + sample["new"] + rest["new"] == 2 * cheap["new"]


def test_too_few_queries_promise_nothing(runner, storage, kept):
    promise = Promise(5, 0.98, 0.95, otherwise="stop")
    job = cascade(kept, "few", promise, strong="0b0e", cheap="0b0f")
    with pytest.raises(GuaranteeError, match=r"it takes 176 queries, and there are 120"):
        run(runner, storage, job)
    assert not (kept.folder / "out/scores/scorer=0b0f").exists(), "nothing has been scored"
    whole = cascade(kept, "few", replace(promise, otherwise="all"), strong="0b0e", cheap="0b0f")
    assert run(runner, storage, whole)["published"]
    _, sample, rest = passes(kept, "few")
    assert (rest["guarantee"]["spared"], rest["guarantee"]["margin"]) == (0, None)
    assert "it takes 176 queries" in rest["guarantee"]["reason"]
    assert sample["counts"]["candidates"] == rest["guarantee"]["of_pairs"]


def test_a_rule_of_an_earlier_run_holds_while_the_scores_do(runner, storage, kept):
    promise = replace(PROMISE, from_run="r")
    run(runner, storage, cascade(kept, "next", promise))
    _, rest = passes(kept, "next")
    old, new = passes(kept, "r")[2]["guarantee"], rest["guarantee"]
    assert [new[name] for name in ("margin", "recall", "at_least")] == [
        old[name] for name in ("margin", "recall", "at_least")
    ]
    assert new["sample"]["shift_p_value"] == 1
    assert new["spared"] > old["spared"], "no query is read whole"
    candidates = pq.read_table(kept.folder / "candidates.parquet").to_pylist()
    kept.write("candidates", [row for row in candidates if int(row["doc_id"][1:]) % 3])
    run(runner, storage, cascade(kept, "shifted", promise))
    guarantee = passes(kept, "shifted")[1]["guarantee"]
    assert "lists have shifted since run r" in guarantee["reason"]
    assert (guarantee["spared"], guarantee["margin"]) == (0, None)
    with pytest.raises(GuaranteeError, match="lists have shifted"):
        run(runner, storage, cascade(kept, "stopped", replace(promise, otherwise="stop")))
    with pytest.raises(RunConflictError, match="both rerankers scored lists whole"):
        run(runner, storage, cascade(kept, "learner", replace(promise, from_run="next")), ["plan"])


def test_an_ensemble_teaches_a_rule(runner, storage, kept):
    ensemble = cascade(kept, "both", fusion=Fusion("reciprocal_rank", (0.5, 0.5)))
    strong = replace(ensemble.stages[-1], keep=None)
    rule = replace(ensemble.rule, logit_biases=(0.0, 1.0))
    run(runner, storage, replace(ensemble, stages=(ensemble.stages[0], strong), rule=rule))
    run(runner, storage, cascade(kept, "next", replace(PROMISE, from_run="both")))
    guarantee = passes(kept, "next")[1]["guarantee"]
    assert guarantee["sample"]["queries"] == 108, "four times the least"
    assert guarantee["margin"] < passes(kept, "r")[2]["guarantee"]["margin"], "more queries tell more"


def test_a_third_reranker_keeps_its_promise_of_what_the_second_passed_on(runner, storage, kept):
    limits = kept.limits(unit_tokens=5000)
    third = Stage("7a17", "third", 3000, 1.0, HashFactory(STRONG), "cpu", limits, keep=replace(PROMISE, of_top=2))
    second = Stage(STRONG, "strong", 3000, 1.0, HashFactory(STRONG), "cpu", limits, keep=PROMISE)
    run(runner, storage, cascade(kept, "three", later=(*second.parts, *third.parts)))
    second, third = (passes(kept, "three")[number]["guarantee"] for number in (2, 4))
    rejected = sum(row["reason"] == "input_too_long" for row in kept.ranked("three"))
    assert third["of_pairs"] == second["sample"]["pairs"] + second["read"] - rejected
    lists = lists_of(kept, "three")
    samples = [{q for q, of in lists.items() if any(number in by for by in of.values())} for number in (2, 4)]
    assert len(samples[0] & samples[1]) < 20, (
        "lists that the second has read whole are not what the third gets elsewhere"
    )
    assert third["margin"] == 0, "it is the second one again, and asks for no more than its top"
