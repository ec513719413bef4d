"""Measure a listwise checkpoint against its own pointwise use.

`python -m lakerank_pictograms.evaluate_lists CHECKPOINT FOLDER`: FOLDER holds documents, queries, candidates and qrels
of texts, as `python -m lakerank_pictograms --lists DIR` writes them to DIR/test.

Beside the checkpoint stand methods without a network, on the means of the bundled checkpoint's vectors: cosines; the
same after pseudo-relevance feedback; and cosines with the mean of the list, for which the query is not read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice

import numpy as np
import pyarrow as pa

from lakerank import schemas
from lakerank.errors import ConfigError, LakerankError
from lakerank.lake.columns import decode_text
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import fragments, read_table_file
from lakerank.model.api import load_reranker
from lakerank.model.listwise.reranker import ListwiseReranker
from lakerank.records import CandidateList, Document, Query, Reject, ScoredPair
from lakerank_evaluation.inputs import LakeTables
from lakerank_evaluation.metrics.bootstrap import interval, query_hashes, resampled_sums
from lakerank_evaluation.metrics.measures import NAMES, PRIMARY, Floats, list_figures
from lakerank_pictograms.evaluate_checkpoint import read_lake_lists

#: Of feedback without a network: its weight, how sharply it prefers the alike, the weight of moving to none, rounds.
_FEEDBACK = (4.0, 8.0, 8.0, 2)

#: Tokens of a text whose vectors are added up.
_TOKENS = 40


@dataclass(frozen=True, slots=True)
class JudgedLists:
    """Candidate lists of texts, and the judgements of each one's query."""

    lists: Sequence[CandidateList]
    judgements: Sequence[Mapping[str, int]]

    def figures(self, scores: Sequence[Sequence[float] | Floats]) -> Floats:
        """nDCG@10 of each list, ordered by the scores of its documents; equal ones by their place."""
        orders = [np.argsort(-np.asarray(each), kind="stable") for each in scores]
        ids = [[document.doc_id for document in each.documents] for each in self.lists]
        ranked = [[names[place] for place in order] for names, order in zip(ids, orders, strict=True)]
        return list_figures(ranked, self.judgements)[:, NAMES.index(PRIMARY)]


def read_lists(folder: str, count: int | None = None) -> JudgedLists:
    """The first so many lists of a lake, by the queries' ids.

    Raises StorageError, SchemaError: a table is not there, or lacks a column.
    """
    storage = Storage()

    def texts(name: str, schema: pa.Schema) -> dict[str, str]:
        files = fragments(storage, join(folder, f"{name}.parquet"), schema)
        batches = [batch for each in files for _, _, batch in read_table_file(storage, each.file, schema)]
        return {row[schema.names[0]]: decode_text(row["text"]) or "" for batch in batches for row in batch.to_pylist()}

    tables = LakeTables(*(join(folder, f"{name}.parquet") for name in ("documents", "queries", "candidates", "qrels")))
    lake, documents = read_lake_lists(storage, tables), texts("documents", schemas.DOCUMENTS)
    queries = dict(islice(sorted(texts("queries", schemas.QUERIES).items()), count))
    listed = {name: [each.doc_id for each in lake.candidates[name]] for name in queries}
    lists = [
        CandidateList(Query(name, text=text), tuple(Document(key, text=documents[key]) for key in listed[name]))
        for name, text in queries.items()
    ]
    return JudgedLists(lists, [lake.judgements.get(name, {}) for name in queries])


def checkpoint_figures(checkpoint: str, lists: JudgedLists, dtype: str) -> dict[str, Floats]:
    """nDCG@10 of a checkpoint's uses: lists as given, reversed, by the mean of both; pairs.

    Raises ConfigError: it scores pairs alone.
    """
    reranker = load_reranker(checkpoint, dtype=dtype).reranker
    if not isinstance(reranker, ListwiseReranker):
        raise ConfigError([f"{checkpoint} scores pairs alone; name a listwise checkpoint"])

    def scored(given: Sequence[CandidateList]) -> list[list[float]]:
        results = iter(reranker.score_lists(given))
        return [[_logit(next(results)) for _ in each.documents] for each in given]

    forward = scored(lists.lists)
    backward = [scores[::-1] for scores in scored([replace(e, documents=e.documents[::-1]) for e in lists.lists])]
    pairs = load_reranker(checkpoint, dtype=dtype, pointwise=True)
    single = iter(pairs.score([(each.query, document) for each in lists.lists for document in each.documents]))
    by_use: dict[str, Sequence[Sequence[float] | Floats]] = {
        "lists": forward,
        "lists, reversed": backward,
        "lists, both orders": [np.add(*both) for both in zip(forward, backward, strict=True)],
        "pairs": [[*islice(single, len(each.documents))] for each in lists.lists],
    }
    return {name: lists.figures(scores) for name, scores in by_use.items()}


def _logit(result: ScoredPair | Reject) -> float:
    """A document that is rejected is last."""
    return result.logit if isinstance(result, ScoredPair) else -np.inf


def baseline_figures(lists: JudgedLists) -> dict[str, Floats]:
    """nDCG@10 of methods without a network, and of the order that is given."""
    mean = _text_means()

    def by(method: Callable[[Floats, Floats], Floats]) -> Floats:
        vectors = [(mean(e.query.text), np.stack([mean(d.text) for d in e.documents])) for e in lists.lists]
        return lists.figures([method(query, documents) for query, documents in vectors])

    return {
        "mean vectors": by(lambda query, documents: documents @ query),
        "mean vectors, feedback": by(_fed_back),
        "mean vectors, without the query": by(lambda query, documents: documents @ documents.mean(0)),
        "as given": lists.figures([np.zeros(len(each.documents)) for each in lists.lists]),
    }


def _fed_back(query: Floats, documents: Floats) -> Floats:
    weight, sharpness, rest, rounds = _FEEDBACK
    for _ in range(rounds):
        similarity = np.exp(sharpness * documents @ (query / max(float(np.linalg.norm(query)), 1e-9)))
        query = query + weight * (similarity / (similarity.sum() + rest)) @ documents
    return documents @ query


def _text_means() -> Callable[[str | None], Floats]:
    """Means of the vectors of a text's tokens, of length 1."""
    from lakerank.model.checkpoint import EMBEDDED
    from lakerank.model.preprocess.tokenizer import read_tokenizer
    from lakerank_training.listwise.initialise import bundled_vectors

    tokenizer = read_tokenizer(EMBEDDED / "tokenizer.json", names_are_text=True)
    vectors = bundled_vectors(tokenizer.get_vocab_size()).numpy()

    @cache
    def mean(text: str | None) -> Floats:
        total = vectors[tokenizer.encode(text or "", add_special_tokens=False).ids[:_TOKENS]].sum(0).astype(np.float64)
        unit: Floats = total / max(float(np.linalg.norm(total)), 1e-9)
        return unit

    return mean


def table(figures: Mapping[str, Floats], lists: JudgedLists) -> str:
    """A line a method: its mean, and how far lists are above it, with a 95 % interval of a paired bootstrap."""
    lines = [f"{len(lists.lists)} lists, {PRIMARY}:", "", "| | mean | lists - this | 95 % |", "|---|--:|--:|---|"]
    hashes = query_hashes([each.query.query_id for each in lists.lists])
    for name, values in figures.items():
        difference = figures["lists"] - values
        sums = resampled_sums(hashes, difference[:, None])  # (RESAMPLES, 2): of differences, and of lists
        means = np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] > 0)
        low, high = interval(means, len(difference))
        bounds = "" if low is None or high is None else f"[{low:+.4f}, {high:+.4f}]"
        lines.append(f"| {name} | {values.mean():.4f} | {difference.mean():+.4f} | {bounds} |")
    return "\n".join(lines) + "\n"


def main(words: Sequence[str] | None = None) -> int:
    """Print a Markdown table; 2 when the checkpoint or the lake cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m lakerank_pictograms.evaluate_lists", description=__doc__)
    parser.add_argument("checkpoint", help="folder of a listwise checkpoint")
    parser.add_argument("folder", help="a lake of lists")
    parser.add_argument("--lists", type=int, metavar="N", help="the first so many (default: all)")
    parser.add_argument("--dtype", default="float32", help="what is computed in (default: float32)")
    arguments = parser.parse_args(words)
    try:
        lists = read_lists(arguments.folder, arguments.lists)
        figures = checkpoint_figures(arguments.checkpoint, lists, arguments.dtype) | baseline_figures(lists)
    except LakerankError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(table(figures, lists))
    return 0


if __name__ == "__main__":
    sys.exit(main())
