"""The whole job on Spark, end to end, beside the published loop in Spark's own `predict_batch_udf`."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
import pyarrow as pa
import torch
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import FloatType

from lakerank.cli.job import spark_session
from lakerank.cli.resolve import rerank_job
from lakerank.config import Config, resolve_config
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import parquet_bytes
from lakerank.model.registry import LoadedReranker
from lakerank.records import Document, DocumentGroup, Query, Reject, ScoredPair
from lakerank.rerank.run import Rerank, run
from lakerank.rerank.score import RerankerFactory
from lakerank.schemas import CANDIDATES, INGESTED_DOCUMENTS, QUERIES
from lakerank.spark.runtime.runner import SparkRunner
from lakerank.spark.runtime.session import package_path
from lakerank_benchmark.benchmark import job_inputs
from lakerank_benchmark.request import Request
from lakerank_benchmark.workloads import Images, pairs_of
from oracles.reference import PublishedLoop

#: Units a core: in the end one core at most waits for a unit's time.
_UNITS = 20

#: Cost of a page with 25 queries, in `lakerank.cost`'s tokens, by which units are cut.
_PAGE_TOKENS = 3500

#: Where workers find the published loop, which is no part of the package.
_ORACLES = Path(inspect.getfile(PublishedLoop)).parents[1]

#: Rows of a row group of documents, as a lake of page images should have.
_DOCUMENT_ROWS = 8

#: Pairs in a batch of the published loop.
_BATCH = 8

#: What a scoring job is for; the rest of its time is overhead.
_WITHIN = ("fetch", "decode and tokenise", "model")

#: Scores pairs given as columns: query text and image, document text and image.
Predict = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class EndToEnd:
    """One job from tables to tables. `shares` are of the cores' time over the job's wall time; they add up to one."""

    name: str
    pairs: int
    seconds: float
    pairs_per_second: float
    shares: Mapping[str, float]


def benchmark_job(request: Request, pages: Images, output: Path) -> dict[str, Any]:
    """The whole job and the published loop on one local Spark of as many cores as threads, a thread a task.

    Prints both, and returns what `benchmark-spark.json` in `output` holds.
    """
    groups, sample = job_inputs(request, pages)
    storage, folder = Storage(), output.resolve() / "spark"
    shutil.rmtree(folder, ignore_errors=True)
    config = job_config(request, write_lake(storage, str(folder / "lake"), groups), folder / "out", len(groups))
    with spark_session(config.spark) as spark:
        ours = time_job(spark, storage, rerank_job(config, "benchmark", storage), folder / "profile")
        click.echo(as_text(ours))
        published = None
        if sample:
            lake = write_lake(storage, str(folder / "part"), sample)
            factory = PublishedFactory(request.checkpoint, request.dtype, request.device)
            published = time_published(spark, lake, factory, str(folder / "scores"))
            click.echo(as_text(published))
    report = compared(ours, published)
    click.echo(f"outside fetching, decoding and the model: {report['outside']:.1%} of the cores' time")
    (output / "benchmark-spark.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def compared(ours: EndToEnd, published: EndToEnd | None) -> dict[str, Any]:
    """What ran, the ratio, and the share of ours that is neither fetching nor decoding nor the model."""
    report = {"job": asdict(ours), "outside": 1 - sum(ours.shares.get(stage, 0.0) for stage in _WITHIN)}
    if published is None:
        return report
    return report | {"published": asdict(published), "ratio": ours.pairs_per_second / published.pairs_per_second}


def job_config(request: Request, lake: Mapping[str, str], output: Path, documents: int) -> Config:
    """The demo's settings for these tables, in units of even size, several a core."""
    values: dict[str, Any] = {
        "lake": {**lake, "output": str(output)},
        "model": {"path": request.checkpoint, "dtype": request.dtype, "device": request.device},
        "scoring": {"unit_tokens": max(1, documents // (_UNITS * request.threads)) * _PAGE_TOKENS},
        "audit": {"max_reject_rate": None, "max_unranked_queries": None, "max_score_drift": None},
        "spark": {
            "app_name": "lakerank-benchmark",
            "conf": {
                "spark.master": f"local[{request.threads}]",
                "spark.driver.memory": "2g",
                "spark.executorEnv.PYTHONPATH": f"{_ORACLES}{os.pathsep}{package_path()}",
                "spark.ui.enabled": False,
                "spark.ui.showConsoleProgress": False,
            },
        },
    }
    return resolve_config(values, source="benchmark")


def write_lake(storage: Storage, folder: str, groups: Sequence[DocumentGroup]) -> dict[str, str]:
    """Tables of the lake contract that hold these groups, one file each; their addresses by name."""
    pairs = pairs_of(groups)
    tables = {
        "documents": (INGESTED_DOCUMENTS, [asdict(group.document) for group in groups], _DOCUMENT_ROWS),
        "queries": (QUERIES, [asdict(query) for query in {query.query_id: query for query, _ in pairs}.values()], 1024),
        "candidates": (CANDIDATES, [{"query_id": q.query_id, "doc_id": d.doc_id} for q, d in pairs], 1_000_000),
    }
    files = {name: join(folder, f"{name}.parquet") for name in tables}
    for name, (schema, rows, row_group_rows) in tables.items():
        storage.replace(files[name], parquet_bytes(pa.Table.from_pylist(rows, schema), row_group_rows))
    return files


def time_job(spark: SparkSession, storage: Storage, job: Rerank, profile: Path) -> EndToEnd:
    """Run a whole rerank job: plan, score, rank, audit and publish. `profile` is a folder for the workers' notes.

    Raises:
        RuntimeError: the job did not publish.
    """
    profile.mkdir(parents=True, exist_ok=True)
    stages = tuple(replace(stage, factory=ProfiledFactory(stage.factory, str(profile))) for stage in job.stages)
    started = time.monotonic()
    summary = run(SparkRunner(spark), storage, replace(job, stages=stages))
    seconds = time.monotonic() - started
    if not summary["published"]:
        raise RuntimeError(f"the benchmark's run was not published: {summary['failed_audits']}")
    pairs = int(summary["scored"])
    return EndToEnd(
        "lakerank job", pairs, seconds, pairs / seconds, _shares(profile, seconds * SparkRunner(spark).parallelism)
    )


def time_published(
    spark: SparkSession, lake: Mapping[str, str], make_predict: Callable[[], Predict], output: str
) -> EndToEnd:
    """Join the tables, score every candidate with `predict_batch_udf`, and write the scores.

    The documents are broadcast and the pairs spread over all cores beforehand, which is the best that a small lake
    allows; each worker loads the model once.
    """
    started = time.monotonic()
    documents, queries = (
        spark.read.parquet(lake[table]).select(
            key, F.col("text").alias(f"{side}_text"), F.col("image").alias(f"{side}_image")
        )
        for table, key, side in (("documents", "doc_id", "document"), ("queries", "query_id", "query"))
    )
    pairs = (
        spark.read.parquet(lake["candidates"]).select("query_id", "doc_id").repartition(SparkRunner(spark).parallelism)
    )
    joined = pairs.join(F.broadcast(documents), "doc_id").join(F.broadcast(queries), "query_id")
    factory: Any = make_predict  # PySpark's stub knows functions of one column alone
    logit = predict_batch_udf(factory, return_type=FloatType(), batch_size=_BATCH)
    columns = ("query_text", "query_image", "document_text", "document_image")
    joined.select("query_id", "doc_id", logit(*columns).alias("logit")).write.mode("overwrite").parquet(output)
    seconds = time.monotonic() - started
    count = spark.read.parquet(output).where(F.col("logit").isNotNull()).count()
    return EndToEnd("published loop in predict_batch_udf", count, seconds, count / seconds, {})


@dataclass(frozen=True, slots=True)
class PublishedFactory:
    """Loads the published loop inside a worker."""

    checkpoint: str
    dtype: str
    device: str

    def __call__(self) -> Predict:
        """On one thread of a CPU, as a task has one core."""
        torch.set_num_threads(1)
        loop = PublishedLoop(self.checkpoint, dtype=self.dtype, device=self.device)

        def predict(
            query_text: np.ndarray, query_image: np.ndarray, document_text: np.ndarray, document_image: np.ndarray
        ) -> np.ndarray:
            pairs = zip(query_text, query_image, document_text, document_image, strict=True)
            return loop.logits([(Query("", q, q_image), Document("", d, d_image)) for q, q_image, d, d_image in pairs])

        return predict


@dataclass(frozen=True, slots=True)
class ProfiledFactory:
    """Loads a reranker that leaves notes in `folder`, on this machine, of what its time went to."""

    factory: RerankerFactory
    folder: str

    def __call__(self, device: str) -> LoadedReranker:
        """Load, and note how long that took."""
        started = time.monotonic()
        reranker: Any = ProfiledReranker(cast(LoadedReranker, self.factory(device)), self.folder)
        _note(self.folder, {"load": time.monotonic() - started})
        return reranker  # type: ignore[no-any-return]


class ProfiledReranker:
    """A reranker, and notes on each unit that it scored; all else is the inner one's."""

    def __init__(self, inner: LoadedReranker, folder: str) -> None:
        self._inner = inner
        self._folder = folder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def score_groups(self, groups: Iterable[DocumentGroup]) -> Iterator[ScoredPair | Reject]:
        """As the inner one; then a note: seconds of fetching, of waiting for decoding, and of the model's stages."""
        counters: Any = self._inner.counters
        before, fetch_s, started = replace(counters), [0.0], time.monotonic()
        yield from self._inner.score_groups(_timed(groups, fetch_s))
        seconds, work = time.monotonic() - started, counters - before
        model = work.vision_s + work.prefix_s + work.suffix_s
        rest = max(0.0, seconds - fetch_s[0] - work.wait_s - model)
        stages = {"fetch": fetch_s[0], "decode and tokenise": work.wait_s, "model": model, "scoring's rest": rest}
        _note(self._folder, stages)


def _timed(groups: Iterable[DocumentGroup], seconds: list[float]) -> Iterator[DocumentGroup]:
    iterator = iter(groups)
    while True:
        started = time.monotonic()
        group = next(iterator, None)
        seconds[0] += time.monotonic() - started
        if group is None:
            return
        yield group


def _note(folder: str, seconds: Mapping[str, float]) -> None:
    (Path(folder) / f"{uuid.uuid4().hex}.json").write_text(json.dumps(seconds), encoding="utf-8")


def _shares(profile: Path, core_seconds: float) -> dict[str, float]:
    """Seconds noted, by stage, over all that the cores had; what no note speaks of is Spark's and the other stages'."""
    total: Counter[str] = Counter()
    for file in profile.glob("*.json"):
        total.update(json.loads(file.read_text(encoding="utf-8")))
    shares = {stage: seconds / core_seconds for stage, seconds in sorted(total.items())}
    return {**shares, "Spark, plan, rank, publish": 1 - sum(shares.values())}


def as_text(job: EndToEnd) -> str:
    """A line, and the shares beneath it."""
    line = f"{job.name}: {job.pairs} pairs in {job.seconds:.1f} s, {job.pairs_per_second:.3g} pairs/s"
    shares = ", ".join(f"{stage} {share:.1%}" for stage, share in job.shares.items())
    return f"{line}\n  of the cores' time: {shares}" if shares else line
