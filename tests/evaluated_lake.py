"""A small lake and a published run over it, written as the jobs write them."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lakerank import schemas
from lakerank.lake.runs import RunPaths
from lakerank.lake.storage import Storage
from lakerank.runner import LocalRunner
from lakerank_evaluation.blocks import read_blocks
from lakerank_evaluation.evaluation import Evaluation, evaluate
from lakerank_evaluation.inputs import Inputs, LakeTables, find_inputs
from lakerank_evaluation.job import Evaluated, evaluate_run


def encoded(size: tuple[int, int] = (40, 20), kind: str = "PNG", mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, 200).save(buffer, format=kind)
    return buffer.getvalue()


@pytest.fixture
def encode() -> Callable[..., bytes]:
    return encoded


@dataclass(frozen=True)
class Lake:
    tables: LakeTables
    paths: RunPaths

    def add_run(self, run_id: str, ranked: Mapping[str, list[str]], complete: bool = False) -> None:
        """Write another run's lists; of a complete run its manifest and its config too."""
        other = RunPaths(self.paths.output, run_id)
        write(Path(other.ranked) / "part-0.parquet", ranked_rows(ranked, {}), schemas.RANKED)
        if complete:
            write_config(other, self.tables)
            Path(other.manifest).write_text("{}")

    def evaluated(self, baseline: str | None = None) -> Evaluated:
        """Evaluate the run as the job does, in this process."""
        return evaluate_run(LocalRunner(), Storage(), self.inputs(baseline))

    def inputs(self, baseline: str | None = None) -> Inputs:
        other = RunPaths(self.paths.output, baseline) if baseline else None
        return find_inputs(Storage(), self.tables, self.paths, other)

    def evaluation(self) -> Evaluation:
        """The evaluation of the run alone, without its files."""
        return evaluate(Storage(), self.inputs(), read_blocks(LocalRunner(), Storage(), self.inputs()))


@pytest.fixture
def make_lake(tmp_path: Path) -> Callable[..., Lake]:
    """Write tables from rows as dicts; `ranked` gives each query's documents in order, with falling logits."""

    def make(
        documents: list[dict[str, Any]],
        queries: list[dict[str, Any]],
        candidates: list[tuple[str, str, int | None] | dict[str, Any]],
        qrels: list[tuple[str, str, int]],
        ranked: Mapping[str, list[str]],
        rejected: list[tuple[str, str, str]] = (),
        manifest: Mapping[str, Any] | None = None,
        logits: Mapping[tuple[str, str], float] | None = None,
    ) -> Lake:
        paths = RunPaths(str(tmp_path / "out"), "r1")
        write(tmp_path / "documents.parquet", documents, schemas.DOCUMENTS)
        write(tmp_path / "queries.parquet", queries, schemas.QUERIES)
        names = ("query_id", "doc_id", "first_stage_rank")
        rows = [
            candidate if isinstance(candidate, dict) else dict(zip(names, candidate, strict=True))
            for candidate in candidates
        ]
        write(tmp_path / "candidates.parquet", rows, schemas.CANDIDATES)
        rows = [dict(zip(("query_id", "doc_id", "relevance"), qrel, strict=True)) for qrel in qrels]
        write(tmp_path / "qrels.parquet", rows, schemas.QRELS)
        write(Path(paths.ranked) / "part-0.parquet", ranked_rows(ranked, logits or {}), schemas.RANKED)
        rows = [dict(zip(("query_id", "doc_id", "reason"), reject, strict=True)) for reject in rejected]
        if rows:
            write(Path(paths.rejected) / "part-0.parquet", rows, schemas.REJECTED)
        names = ("documents", "queries", "candidates", "qrels")
        tables = LakeTables(*(str(tmp_path / f"{name}.parquet") for name in names))
        write_config(paths, tables)
        Path(paths.manifest).write_text(json.dumps(manifest or {}))
        return Lake(tables, paths)

    return make


def write_config(paths: RunPaths, tables: LakeTables) -> None:
    """The config that a run was made with."""
    Path(paths.config).parent.mkdir(parents=True, exist_ok=True)
    Path(paths.config).write_text(json.dumps({"lake": {**asdict(tables), "output": paths.output}}))


def ranked_rows(ranked: Mapping[str, list[str]], logits: Mapping[tuple[str, str], float]) -> list[dict[str, Any]]:
    return [
        {
            "query_id": query,
            "doc_id": doc,
            "rank": rank,
            "logit": logits.get((query, doc), 5.0 - rank),
            "relevance": 1 / (1 + math.exp(-logits[query, doc])) if (query, doc) in logits else 1 / (rank + 1),
            "label": max(0, 3 - rank),
            "truncated": False,
        }
        for query, docs in ranked.items()
        for rank, doc in enumerate(docs, start=1)
    ]


def write(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    known = set(schema.names)
    extra = sorted({name for row in rows for name in row} - known)
    schema = pa.schema([*schema, *(pa.field(name, pa.string()) for name in extra)])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


@pytest.fixture
def small_lake(make_lake: Callable[..., Lake]) -> Lake:
    """Three judged queries (text, text, image) over text and image documents; the second has nothing ranked."""
    image = encoded()
    return make_lake(
        documents=[
            {"doc_id": "a", "text": "alpha", "name": "Alpha"},
            {"doc_id": "b", "text": "beta"},
            {"doc_id": "c", "image": image, "name": "Gamma"},
            {"doc_id": "d", "text": "delta"},
        ],
        queries=[
            {"query_id": "q1", "text": "wer", "language": "de", "task": "text→text"},
            {"query_id": "q2", "text": "qui", "language": "fr", "task": "text→text"},
            {"query_id": "q3", "image": image, "task": "image→mixed"},
            {"query_id": "q4", "text": "unjudged", "language": "de", "task": "text→text"},
        ],
        candidates=[
            ("q1", "a", 2),
            ("q1", "b", 1),
            ("q1", "d", 3),
            ("q2", "a", 1),
            ("q3", "b", 1),
            ("q3", "c", 2),
            ("q4", "a", 1),
        ],
        qrels=[("q1", "a", 2), ("q1", "d", 1), ("q2", "a", 1), ("q3", "c", 1), ("elsewhere", "a", 1)],
        ranked={"q1": ["a", "d", "b"], "q3": ["b", "c"], "q4": ["a"]},
        rejected=[("q2", "a", "out_of_memory")],
        manifest={
            "published_at": "2026-01-05T10:11:12.000000+00:00",
            "scorer": "abc",
            "counts": {"scored": 6, "reused": 0},
            "scoring": {"seconds": 2.0, "pairs": 4, "tokens_computed": 50, "tokens_pairwise": 200, "model_loads": 1},
        },
    )
