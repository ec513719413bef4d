"""The page's table of queries, and how far reranking moved their first relevant documents."""

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

#: Ranks of the first relevant document, from 1, by their groups.
RANK_GROUPS = ("1", "2–3", "4–10", "11 or below", "not in the list")


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


def rank_shifts(evaluation: Evaluation) -> list[list[int]]:
    """Queries by the group of their first relevant document's rank before (rows) and after (columns): RANK_GROUPS²."""
    counts, size, never = evaluation.queries.counts, len(RANK_GROUPS), 1 << 40
    groups = [np.digitize(counts[name].fill_null(never), [2, 4, 11, never]) for name in COUNTS[-2:]]
    cells = (groups[0] * size + groups[1])[counts["relevant"].to_numpy() > 0]
    table: list[list[int]] = np.bincount(cells, minlength=size**2).reshape(size, size).tolist()
    return table
