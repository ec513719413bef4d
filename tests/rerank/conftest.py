"""A small lake, and a reranker that costs nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakerank.audit import Bounds
from lakerank.cost import Sizing
from lakerank.lake.runs import RunPaths
from lakerank.lake.storage import Storage
from lakerank.plan.plan import PlanLimits, Tables
from lakerank.ranking import Fusion
from lakerank.records import CandidateList, Document, DocumentGroup, Query, Reject, RejectReason, ScoredPair
from lakerank.rerank.publish import AuditRules
from lakerank.rerank.rank.combine import FusionRule
from lakerank.rerank.rank.write import RankRule
from lakerank.rerank.run import Rerank, run
from lakerank.rerank.stage import Stage
from lakerank.runner import Runner
from lakerank.schemas import CANDIDATES, DOCUMENTS, QUERIES


@dataclass
class HashWork:
    computed: int = 0
    pairwise: int = 0


@dataclass
class HashReranker:
    """Scores a pair by a hash of its contents; a document that says so runs out of memory, or is one it cannot read.

    Each salt is another scorer, which cannot read texts that end in it.
    """

    salt: str = ""
    gpu: str | None = None
    counters: HashWork = field(default_factory=lambda: HashWork())

    def score_groups(self, groups: Iterable[DocumentGroup]) -> Iterator[ScoredPair | Reject]:
        for group in groups:
            document = group.document
            for query in group.queries:
                if document.text == "too much":
                    yield Reject(query.query_id, document.doc_id, RejectReason.OUT_OF_MEMORY, "no room")
                    continue
                if self.salt and (document.text or "").endswith(self.salt):
                    yield Reject(query.query_id, document.doc_id, RejectReason.INPUT_TOO_LONG, "unreadable")
                    continue
                content = self.salt.encode() + repr((query.text, query.image, document.text, *document.images)).encode()
                logit = int.from_bytes(hashlib.blake2b(content, digest_size=2).digest()) / 8192 - 4
                yield ScoredPair(query.query_id, document.doc_id, logit, 5, 7, False, document.text == "long")


@dataclass(frozen=True)
class HashFactory:
    salt: str = ""
    gpu: str | None = None

    def __call__(self, device: str) -> HashReranker:
        return HashReranker(self.salt, self.gpu)


@dataclass
class HashLister:
    """Scores a document by a hash of all contents of its list in order; one that says so it cannot read.

    Given a file, it writes down what lists it was given, and dies at the list of the query `dies`.
    """

    log: str | None = None
    dies: str | None = None
    counters: HashWork = field(default_factory=HashWork)

    def score_lists(self, lists: Iterable[CandidateList]) -> Iterator[ScoredPair | Reject]:
        for given in lists:
            query = given.query
            self.counters.computed += len(given.documents)
            if query.text == self.dies:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.log:
                with Path(self.log).open("a") as log:
                    print(json.dumps([query.query_id, [document.doc_id for document in given.documents]]), file=log)
            readable = [d for d in given.documents if not (d.text or "").startswith("unreadable")]
            for document in given.documents:
                pair = query.query_id, document.doc_id
                if document not in readable:
                    transient = document.text == "unreadable for now"
                    reason = RejectReason.OUT_OF_MEMORY if transient else RejectReason.INPUT_TOO_LONG
                    yield Reject(*pair, reason, "cannot")
                    continue
                content = repr((query.text, [d.text for d in readable], document.text)).encode()
                logit = int.from_bytes(hashlib.blake2b(content, digest_size=3).digest()) / 2**20 - 8
                yield ScoredPair(*pair, logit, 5, 7, False, False)


@dataclass(frozen=True)
class HashListFactory:
    log: str | None = None
    dies: str | None = None

    def __call__(self, device: str) -> HashLister:
        return HashLister(self.log, self.dies)


@dataclass(frozen=True)
class Lake:
    """Tables in a folder, and the job that reranks them."""

    folder: Path

    def write(self, name: str, rows: list[dict[str, object]], row_group_rows: int = 4) -> None:
        schema = {"documents": DOCUMENTS, "queries": QUERIES, "candidates": CANDIDATES}[name]
        table = pa.Table.from_pylist(rows, schema=pa.schema([column.with_nullable(True) for column in schema]))
        pq.write_table(table, self.folder / f"{name}.parquet", row_group_size=row_group_rows)

    def factory(self, salt: str) -> HashFactory:
        """Another scorer than the job's."""
        return HashFactory(salt)

    def job(
        self, run_id: str, later: tuple[Stage, ...] = (), fusion: Fusion | None = None, **changes: object
    ) -> Rerank:
        """A job of one stage, or with `later` of several; `changes` are of the first stage, or of the job."""
        sizing = Sizing(3136, 602112, 10000)
        tables = Tables(*(str(self.folder / f"{name}.parquet") for name in ("documents", "queries", "candidates")))
        rule = changes.pop("rule", RankRule(logit_bias=0.0, thresholds=(0.5,), depth=None))
        limits = PlanLimits(
            sizing, sizing, max_queries_per_group=3, unit_tokens=100, rows_per_file=1_000_000,
            with_group_ids=rule.per_group is not None,
        )  # fmt: skip
        first = Stage("f00d", "", 1000, rule.logit_bias, HashFactory(), "cpu", limits)
        own = {field.name for field in fields(Stage)} & changes.keys()
        stages = (replace(first, **{name: changes.pop(name) for name in own}), *later)
        if later:
            biases = tuple(stage.logit_bias for stage in stages)
            rule = FusionRule(biases, fusion, rule.thresholds, rule.depth, rule.per_group)
        paths = RunPaths(str(self.folder / "out"), run_id)
        return replace(Rerank(paths, tables, stages, rule, AuditRules(Bounds()), "lake: {}\n"), **changes)

    def limits(self, **changes: object) -> PlanLimits:
        """The limits of its jobs, some of them changed."""
        return replace(self.job("any").stages[0].limits, **changes)

    def logits(self, salt: str = "") -> dict[tuple[str, str], float]:
        """What a HashReranker gives every pair of a query and a document that it can score."""
        rows = {name: pq.read_table(self.folder / f"{name}.parquet").to_pylist() for name in ("documents", "queries")}
        queries = tuple(Query(row["query_id"], row["text"], row["image"]) for row in rows["queries"])
        groups = [DocumentGroup(Document(r["doc_id"], r["text"], r["image"]), queries) for r in rows["documents"]]
        results = HashReranker(salt).score_groups(groups)
        return {(pair.query_id, pair.doc_id): pair.logit for pair in results if isinstance(pair, ScoredPair)}

    def ranked(self, run_id: str) -> list[dict[str, object]]:
        return pq.read_table(self.folder / "out" / "ranked" / f"run_id={run_id}", partitioning=None).to_pylist()

    def rejected(self, run_id: str) -> list[dict[str, object]]:
        return pq.read_table(self.folder / "out" / "rejected" / f"run_id={run_id}", partitioning=None).to_pylist()

    def ranked_bytes(self, run_id: str) -> dict[str, bytes]:
        folder = self.folder / "out" / "ranked" / f"run_id={run_id}"
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

    def unit_files(self, scorer: str = "f00d") -> dict[str, bytes]:
        folder = self.folder / "out" / "scores" / f"scorer={scorer}"
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Thirty documents and twelve queries with twenty of the documents each; nothing is ranked yet."""
    return small_lake(tmp_path)


@pytest.fixture
def published(tmp_path: Path, published_once: Path) -> Lake:
    """The same lake with run r1 of HashReranker published: a copy, to be changed at will."""
    shutil.copytree(published_once, tmp_path, dirs_exist_ok=True)
    return Lake(tmp_path)


@pytest.fixture(scope="session")
def published_once(runner: Runner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of that lake, made once a process; not to be written to."""
    lake = small_lake(tmp_path_factory.mktemp("published"))
    assert run(runner, Storage(), lake.job("r1"))["published"]
    return lake.folder


def small_lake(folder: Path) -> Lake:
    lake = Lake(folder)
    lake.write("documents", [{"doc_id": f"d{i:02}", "text": f"document {i}"} for i in range(30)])
    lake.write("queries", [{"query_id": f"q{i:02}", "text": f"query {i}"} for i in range(12)])
    pairs = [(q, (q * 7 + k) % 30, k) for q in range(12) for k in range(20)]
    lake.write(
        "candidates",
        [{"query_id": f"q{q:02}", "doc_id": f"d{d:02}", "first_stage_rank": k + 1} for q, d, k in pairs],
        row_group_rows=50,
    )
    return lake


@pytest.fixture
def storage() -> Storage:
    return Storage()
