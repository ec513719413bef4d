"""The whole job on Spark, end to end, beside the published loop in Spark's own `predict_batch_udf`."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import FloatType

from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import parquet_bytes
from lakerank.model.registry import LoadedReranker, TokenCounters
from lakerank.records import Document, DocumentGroup, Query, Reject, ScoredPair
from lakerank.schemas import CANDIDATES, DOCUMENTS, QUERIES
from lakerank.spark.run import Rerank, run
from lakerank.spark.runtime.frames import parallelism
from lakerank.spark.score import RerankerFactory

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


@dataclass(frozen=True, slots=True)
class LakeFiles:
    """Addresses of a benchmark's tables."""

    documents: str
    queries: str
    candidates: str


def write_lake(storage: Storage, folder: str, groups: Sequence[DocumentGroup]) -> LakeFiles:
    """Tables of the lake contract that hold these groups: one file each."""
    files = LakeFiles(*(join(folder, f"{name}.parquet") for name in ("documents", "queries", "candidates")))
    queries = list({query.query_id: query for group in groups for query in group.queries}.values())
    documents = [group.document for group in groups]
    pairs = [
        {"query_id": query.query_id, "doc_id": group.document.doc_id} for group in groups for query in group.queries
    ]
    storage.replace(files.documents, _table(DOCUMENTS, [asdict(one) for one in documents], _DOCUMENT_ROWS))
    storage.replace(files.queries, _table(QUERIES, [asdict(one) for one in queries], 1024))
    storage.replace(files.candidates, _table(CANDIDATES, pairs, 1_000_000))
    return files


def _table(schema: pa.Schema, rows: Sequence[Mapping[str, Any]], row_group_rows: int) -> bytes:
    filled = [{name: row.get(name) for name in schema.names} for row in rows]
    return parquet_bytes(pa.Table.from_pylist(filled, schema=schema), row_group_rows)


def time_job(spark: SparkSession, storage: Storage, job: Rerank, profile: Path) -> EndToEnd:
    """Run a whole rerank job: plan, score, rank, audit and publish. `profile` is a folder for the workers' notes.

    Raises:
        RuntimeError: the job did not publish.
    """
    profile.mkdir(parents=True, exist_ok=True)
    stages = (replace(one, factory=ProfiledFactory(one.factory, str(profile))) for one in job.stages)
    profiled = replace(job, stages=tuple(stages))
    started = time.monotonic()
    summary = run(spark, storage, profiled)
    seconds = time.monotonic() - started
    if not summary["published"]:
        raise RuntimeError(f"the benchmark's run was not published: {summary['failed_audits']}")
    pairs = int(summary["scored"])
    return EndToEnd("lakerank job", pairs, seconds, pairs / seconds, _shares(profile, seconds * parallelism(spark)))


def time_published(spark: SparkSession, files: LakeFiles, make_predict: Callable[[], Predict], output: str) -> EndToEnd:
    """Join the tables, score every candidate with `predict_batch_udf`, and write the scores.

    The documents are broadcast and the pairs spread over all cores beforehand, which is the best that a small lake
    allows; each worker loads the model once.
    """
    started = time.monotonic()
    documents = spark.read.parquet(files.documents).select(
        "doc_id", F.col("text").alias("document_text"), F.col("image").alias("document_image")
    )
    queries = spark.read.parquet(files.queries).select(
        "query_id", F.col("text").alias("query_text"), F.col("image").alias("query_image")
    )
    pairs = spark.read.parquet(files.candidates).select("query_id", "doc_id").repartition(parallelism(spark))
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
        from lakerank_benchmark.contenders import published_loop

        loop = published_loop(self.checkpoint, self.dtype, self.device, threads=1)

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
        inner = self.factory(device)
        _note(self.folder, {"load": time.monotonic() - started})
        return ProfiledReranker(inner, self.folder)


class ProfiledReranker:
    """A reranker, and notes on each unit that it scored."""

    def __init__(self, inner: LoadedReranker, folder: str) -> None:
        self._inner = inner
        self._folder = folder
        self.fingerprint, self.logit_bias, self.load_id = inner.fingerprint, inner.logit_bias, inner.load_id

    @property
    def counters(self) -> TokenCounters:
        """The inner one's."""
        return self._inner.counters

    def score(self, pairs: Sequence[tuple[Query, Document]]) -> np.ndarray:
        """As the inner one."""
        return self._inner.score(pairs)

    def score_groups(self, groups: Iterable[DocumentGroup]) -> Iterator[ScoredPair | Reject]:
        """As the inner one; then a note: seconds of fetching, of waiting for decoding, and of the model's stages."""
        counters: Any = self._inner.counters
        before, spent, started = replace(counters), [0.0], time.monotonic()
        yield from self._inner.score_groups(_timed(groups, spent))
        seconds, done = time.monotonic() - started, counters - before
        model = done.vision_s + done.prefix_s + done.suffix_s
        rest = max(0.0, seconds - spent[0] - done.wait_s - model)
        _note(
            self._folder,
            {"fetch": spent[0], "decode and tokenise": done.wait_s, "model": model, "scoring's rest": rest},
        )


def _timed(groups: Iterable[DocumentGroup], spent: list[float]) -> Iterator[DocumentGroup]:
    source = iter(groups)
    while True:
        started = time.monotonic()
        group = next(source, None)
        spent[0] += time.monotonic() - started
        if group is None:
            return
        yield group


def _note(folder: str, seconds: Mapping[str, float]) -> None:
    (Path(folder) / f"{uuid.uuid4().hex}.json").write_text(json.dumps(seconds), encoding="utf-8")


def _shares(profile: Path, core_seconds: float) -> dict[str, float]:
    """Seconds noted, by stage, over all that the cores had; what no note speaks of is Spark's and the other stages'."""
    total: dict[str, float] = {}
    for file in profile.glob("*.json"):
        for stage, seconds in json.loads(file.read_text(encoding="utf-8")).items():
            total[stage] = total.get(stage, 0.0) + seconds
    shares = {stage: seconds / core_seconds for stage, seconds in sorted(total.items())}
    return {**shares, "Spark, plan, rank, publish": 1 - sum(shares.values())}


def as_text(found: EndToEnd) -> str:
    """A line, and the shares beneath it."""
    line = f"{found.name}: {found.pairs} pairs in {found.seconds:.1f} s, {found.pairs_per_second:.3g} pairs/s"
    shares = ", ".join(f"{stage} {share:.1%}" for stage, share in found.shares.items())
    return f"{line}\n  of the cores' time: {shares}" if shares else line


def compared(ours: EndToEnd, published: EndToEnd | None) -> dict[str, Any]:
    """What ran, the ratio, and the share of ours that is neither fetching nor decoding nor the model."""
    found = {"job": asdict(ours), "outside": 1 - sum(ours.shares.get(stage, 0.0) for stage in _WITHIN)}
    if published is None:
        return found
    return found | {"published": asdict(published), "ratio": ours.pairs_per_second / published.pairs_per_second}
