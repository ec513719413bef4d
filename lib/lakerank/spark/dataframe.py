"""Reranking of one's own DataFrames: lazily, by document, with one model a Python worker; nothing is written.

Unlike the job on a lake, which fetches by reference, documents' texts and images cross the JVM here, once each. Only
the DataFrame API is used, no SparkContext.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf
from pyspark.sql.pandas.types import from_arrow_schema

from lakerank.errors import ConfigError, SchemaError
from lakerank.limits import Limits
from lakerank.model.api import RerankModel
from lakerank.model.registry import LoadedReranker
from lakerank.model.spec import CheckpointSpec, RuntimeOptions, ScorerIdentity
from lakerank.ranking import labels, relevance
from lakerank.records import Document, DocumentGroup, Query, Reject, RejectReason, ScoredPair
from lakerank.spark.runtime.session import device_for_task

#: What a task yields. `reason` is null exactly where there is a logit.
_RESULTS = pa.schema([
    ("query_id", pa.string()), ("doc_id", pa.string()), ("logit", pa.float32()), ("relevance", pa.float32()),
    ("label", pa.int8()), ("truncated", pa.bool_()), ("reason", pa.string()), ("detail", pa.string()),
])  # fmt: skip

#: Of queries and documents, as `Query` has them; instructions are of queries alone.
_CONTENT = {"text": "string", "image": "binary", "instruction": "string"}

#: Results in an Arrow batch.
_BATCH_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Scoring:
    """Which checkpoint scores DataFrames, and how: what crosses to the workers.

    `depth`: documents kept a query (None: all). A label counts the `label_thresholds` that a relevance reaches.
    `partitions`: tasks that score; None: as many as spark.sql.shuffle.partitions. `device`: auto, cpu, cuda, …
    """

    checkpoint: CheckpointSpec
    device: str = "auto"
    limits: Limits = field(default_factory=Limits)
    options: RuntimeOptions = field(default_factory=RuntimeOptions)
    depth: int | None = None
    label_thresholds: tuple[float, ...] = (0.25, 0.5, 0.75)
    partitions: int | None = None


def rerank(
    spark: SparkSession,
    candidates: DataFrame,
    documents: DataFrame,
    queries: DataFrame | None = None,
    *,
    model: str | Scoring,
) -> DataFrame:
    """The candidates, scored and ranked within their query; computed when the result is used.

    Args:
        candidates: `query_id`, `doc_id`; and without `queries` a `query` text.
        documents: `doc_id`, `text` (string) or `image` (binary: an encoded file), or both.
        queries: `query_id`, `text` or `image`, or both, and maybe `instruction`, for models that take one.
        model: a checkpoint's path or name, which every worker must find, or a `Scoring`.

    Returns:
        `query_id`, `doc_id` (of the candidates' types), `rank` from 1, `logit`, `relevance`, `label`, `truncated`,
        `reason`, `detail`: one row for each distinct candidate, less those below `depth`. Where a pair cannot be
        scored `reason` is the reject code, and rank, logit, relevance and label are null.

    Raises:
        SchemaError: a DataFrame lacks a column, or one is of another type; all faults are listed.
        CheckpointError: the checkpoint cannot be found here.
    """
    _check(candidates, documents, queries)
    scoring, scorer = _identified(model)
    partitions = scoring.partitions or int(spark.conf.get("spark.sql.shuffle.partitions") or 200)
    pairs = candidates.select(F.col("query_id").cast("string"), F.col("doc_id").cast("string")).distinct()
    rows = _pairs(pairs, candidates, queries).unionByName(_documents(documents, pairs))
    grouped = rows.repartition(partitions, "doc_id").sortWithinPartitions("doc_id", "part", "query_id")
    results = grouped.mapInArrow(ScoreGroups(scoring, scorer), from_arrow_schema(_RESULTS))
    best_first = Window.partitionBy("query_id", F.col("reason").isNull()).orderBy(F.desc("logit"), "doc_id")
    ranked = results.withColumn("rank", F.when(F.col("reason").isNull(), F.row_number().over(best_first)))
    if scoring.depth is not None:
        ranked = ranked.where(F.col("rank").isNull() | (F.col("rank") <= scoring.depth))
    types = dict(candidates.dtypes)
    ids = [F.col(name).cast(types[name]).alias(name) for name in ("query_id", "doc_id")]
    return ranked.select(*ids, "rank", "logit", "relevance", "label", "truncated", "reason", "detail")


def score_udf(model: str | Scoring) -> Callable[..., object]:
    """A function of columns (query, text), and maybe instruction, to a column of logits, null where a pair has none.

    Pairs are scored batch by batch: a document's work is shared only by queries in the same Arrow batch. `rerank`
    brings them together. Raises CheckpointError: the checkpoint cannot be found here.
    """
    scoring, scorer = _identified(model)

    def score(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.Series]:
        reranker = RerankModel(_worker_model(scoring, scorer), "", "", 0, scoring.device, "", scoring.limits)
        for queries, texts, *told in batches:
            asked = [Query("", *row) for row in zip(queries, [None] * len(queries), *told, strict=True)]
            yield pd.Series(reranker.score(zip(asked, texts, strict=True), errors="null"))

    return pandas_udf(score, "float")  # type: ignore[call-overload,no-any-return]


def _identified(model: str | Scoring) -> tuple[Scoring, ScorerIdentity]:
    scoring = model if isinstance(model, Scoring) else Scoring(CheckpointSpec(str(model)))
    scorer = scoring.checkpoint.identify(scoring.limits)
    if scorer.listwise is not None:
        raise ConfigError(
            ["model: it scores lists, and here are pairs; give Scoring(CheckpointSpec(…, pointwise=True))"]
        )
    return scoring, scorer


def _check(candidates: DataFrame, documents: DataFrame, queries: DataFrame | None) -> None:
    """Raises SchemaError: the faults of all DataFrames."""
    frames: list[tuple[str, DataFrame, list[str], list[str]]] = [
        ("candidates", candidates, ["query_id", "doc_id"], ["query"] if queries is None else []),
        ("documents", documents, ["doc_id"], ["text", "image"]),
    ]
    if queries is not None:
        frames.append(("queries", queries, ["query_id"], ["text", "image"]))
    faults = []
    for name, frame, ids, contents in frames:
        types = dict(frame.dtypes)
        found = f"(found: {', '.join(types)})"
        faults += [f"{name}: no column {column!r} {found}" for column in ids if column not in types]
        if contents and not types.keys() & set(contents):
            advice = "; or give queries" if contents == ["query"] else ""
            faults.append(f"{name}: no column {' nor '.join(map(repr, contents))} {found}{advice}")
        for column in (*ids, *contents, *(["instruction"] if name == "queries" else [])):
            kinds = ["string", "bigint", "int", "smallint"] if column in ids else [_CONTENT.get(column, "string")]
            if types.get(column, kinds[0]) not in kinds:
                faults.append(f"{name}: {column} is {types[column]}; expected {' or '.join(kinds)}: cast it")
    if faults:
        raise SchemaError("\n".join(faults))


def _pairs(pairs: DataFrame, candidates: DataFrame, queries: DataFrame | None) -> DataFrame:
    """A row for each pair and each query of its id: behind its document's rows, `part` 1; 2 where there is no query."""
    if queries is None:
        contents = candidates.select(F.col("query_id"), F.col("query").alias("text")).distinct()
    else:
        contents = queries
    contents = _content(contents, "query_id").withColumn("part", F.lit(1))
    joined = pairs.join(contents, "query_id", "left")
    return joined.select("doc_id", F.coalesce("part", F.lit(2)).alias("part"), "query_id", *_CONTENT)


def _documents(documents: DataFrame, pairs: DataFrame) -> DataFrame:
    """A row for each candidate document, `part` 0."""
    contents = _content(documents.drop("instruction"), "doc_id")
    contents = contents.join(pairs.select("doc_id").distinct(), "doc_id", "left_semi")
    return contents.select("doc_id", F.lit(0).alias("part"), F.lit(None).cast("string").alias("query_id"), *_CONTENT)


def _content(frame: DataFrame, identifier: str) -> DataFrame:
    columns = [
        F.col(name) if name in frame.columns else F.lit(None).cast(kind).alias(name) for name, kind in _CONTENT.items()
    ]
    return frame.select(F.col(identifier).cast("string").alias(identifier), *columns)


@dataclass(frozen=True, slots=True)
class ScoreGroups:
    """A function for mapInArrow: rows sorted by document, its own before those of its pairs, to results."""

    scoring: Scoring
    scorer: ScorerIdentity

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """_RESULTS of every pair."""
        rows = (row for batch in batches for row in batch.to_pylist())
        rejects: list[Reject] = []
        waiting: list[ScoredPair | Reject] = []
        for result in self._score(_groups(rows, rejects)):
            waiting.append(result)
            waiting += rejects
            rejects.clear()
            if len(waiting) >= _BATCH_ROWS:
                yield self._results(waiting)
                waiting = []
        waiting += rejects
        if waiting:
            yield self._results(waiting)

    def _score(self, groups: Iterator[DocumentGroup]) -> Iterator[ScoredPair | Reject]:
        """Results of groups; where there are none, no model is loaded."""
        first = next(groups, None)
        if first is not None:
            reranker = _worker_model(self.scoring, self.scorer)
            yield from reranker.score_groups(chain([first], groups))

    def _results(self, results: Sequence[ScoredPair | Reject]) -> pa.RecordBatch:
        scored = [isinstance(result, ScoredPair) for result in results]
        logits = np.array([getattr(result, "logit", 0.0) for result in results], dtype=np.float32)
        relevances = relevance(logits, self.scorer.logit_bias)
        null = ~np.array(scored)
        columns = {
            "query_id": [result.query_id for result in results],
            "doc_id": [result.doc_id for result in results],
            "logit": pa.array(logits, mask=null),
            "relevance": pa.array(relevances, mask=null),
            "label": pa.array(labels(relevances, self.scoring.label_thresholds), mask=null),
            "truncated": [
                (r.query_truncated or r.document_truncated) if isinstance(r, ScoredPair) else None for r in results
            ],
            "reason": [r.reason.value if isinstance(r, Reject) else None for r in results],
            "detail": [r.detail if isinstance(r, Reject) else None for r in results],
        }
        return pa.RecordBatch.from_pydict(columns, schema=_RESULTS)


def _groups(rows: Iterator[dict[str, Any]], rejects: list[Reject]) -> Iterator[DocumentGroup]:
    """Each document and the queries that can be scored on it; `rejects` gets all other pairs."""
    for doc_id, members in groupby(rows, key=itemgetter("doc_id")):
        documents: list[Document] = []
        queries: list[Query] = []
        for query_id, same in groupby(members, key=itemgetter("query_id")):
            contents = [*same]
            if contents[0]["part"] == 0:
                documents += [Document(doc_id, row["text"], row["image"]) for row in contents]
                continue
            reason = _key_fault(contents, len(documents))
            if reason is None:
                queries.append(Query(query_id, *(contents[0][name] for name in _CONTENT)))
            else:
                rejects.append(Reject(query_id, doc_id, reason))
        if queries:
            yield DocumentGroup(documents[0], tuple(queries))


def _key_fault(contents: Sequence[dict[str, Any]], documents: int) -> RejectReason | None:
    """Why a pair has not exactly one query and one document."""
    if contents[0]["part"] == 2:
        return RejectReason.MISSING_QUERY
    if documents != 1:
        return RejectReason.DUPLICATE_DOCUMENT_ID if documents else RejectReason.MISSING_DOCUMENT
    return RejectReason.DUPLICATE_QUERY_ID if len(contents) > 1 else None


#: The worker process's model, by scorer and device.
_MODELS: dict[tuple[str, str], LoadedReranker] = {}


def _worker_model(scoring: Scoring, scorer: ScorerIdentity) -> LoadedReranker:
    """The process's model for a task, loaded by its first; without `device_threads`, on the task's share of cores."""
    device = device_for_task(scoring.device)
    key = scorer.fingerprint, device
    if key not in _MODELS:
        _MODELS.clear()  # another scorer's weights would hold the device's memory
        context = TaskContext.get()
        threads = scoring.options.device_threads or (context.cpus() if context else None)
        options = replace(scoring.options, device_threads=threads)
        _MODELS[key] = scoring.checkpoint.load(device, scoring.limits, options, scorer)
    return _MODELS[key]
