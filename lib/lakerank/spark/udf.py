"""A pandas UDF that scores pairs of texts, for a step of one's own pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pandas as pd
from pyspark.sql.pandas.functions import pandas_udf

from lakerank.model.api import RerankModel
from lakerank.model.spec import CheckpointSpec
from lakerank.spark.dataframe import Scoring, worker_model


def score_udf(model: str | Scoring) -> Callable[..., object]:
    """A function of columns (query, text) to a column of logits, null where a pair cannot be scored.

    Pairs are scored batch by batch: a document's work is shared only by queries in the same Arrow batch. `rerank`
    brings them together. Raises CheckpointError: the checkpoint cannot be found here.
    """
    scoring = model if isinstance(model, Scoring) else Scoring(CheckpointSpec(str(model)))
    scorer = scoring.checkpoint.identify(scoring.limits)

    def score(batches: Iterator[tuple[pd.Series, pd.Series]]) -> Iterator[pd.Series]:
        reranker = RerankModel(worker_model(scoring, scorer), "", "", 0, scoring.device, "", scoring.limits)
        for queries, texts in batches:
            yield pd.Series(reranker.score(zip(queries, texts, strict=True), errors="null"))

    return pandas_udf(score, "float")  # type: ignore[call-overload,no-any-return]
