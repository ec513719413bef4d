"""The page's table of queries."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
import pyarrow as pa

from lakerank.evaluation.analysis.averages import DIMENSIONS
from lakerank.evaluation.evaluation import Evaluation
from lakerank.evaluation.metrics.measures import NAMES, PRIMARY
from lakerank.evaluation.pairs import COUNTS

#: Queries of the table, at most.
MOST = 2000


def query_table(
    evaluation: Evaluation, texts: Callable[[Collection[str]], Mapping[str, str]], most: int = MOST
) -> pa.Table:
    """The queries with the largest losses and gains, worst first: `query_id`, `text`, `labels`, COUNTS, `change`, and
    the primary measure of each list there is. `texts` gives those of queries by id.
    """
    queries, gain = evaluation.queries, evaluation.queries.figures.gain
    order = np.argsort(gain, kind="stable")
    chosen = order if len(order) <= most else np.concatenate([order[: most // 2], order[-most // 2 :]])
    query_ids = queries.query_ids.take(chosen).to_pylist()
    text_of = texts(set(query_ids))
    labels = queries.labels.select([name for name in DIMENSIONS if name in queries.labels.column_names])
    column, stored = NAMES.index(PRIMARY), {"baseline": "against"}  # its name in files
    lists = {stored.get(name, name): table[chosen, column] for name, table in queries.figures.lists.items()}
    return pa.table({
        "query_id": query_ids,
        "text": [text_of.get(query_id, "") for query_id in query_ids],
        "labels": [" · ".join(filter(None, row.values())) for row in labels.take(chosen).to_pylist()],
        **{name: queries.counts[name].take(chosen) for name in COUNTS},
        "change": gain[chosen],
        **lists,
    })  # fmt: skip
