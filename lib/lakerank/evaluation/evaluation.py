"""A run judged: figures over all queries and over slices, and what the run could not rank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lakerank import schemas
from lakerank.errors import SchemaError
from lakerank.evaluation.attributes import Attributes, read_attributes
from lakerank.evaluation.intervals import FEWEST_QUERIES, LEVEL, RESAMPLES, SEED
from lakerank.evaluation.lists import MEASURES, QueryResult, measure
from lakerank.evaluation.run_tables import LakeTables, RunLists, read_run_lists
from lakerank.evaluation.slices import DIMENSIONS, MODALITY, Slice, slice_results, summarise
from lakerank.lake.runs import RunPaths, read_manifest
from lakerank.lake.storage import Storage

#: The documents' extra column that is shown instead of an id.
NAME = "name"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything the report and the tables are made from.

    `results` are in the order of query ids; `queries` and `documents` hold the attributes of all judged queries and of
    all their candidates; `manifest` is empty when the run has none.
    """

    run_id: str
    overall: Slice
    slices: tuple[Slice, ...]
    results: tuple[QueryResult, ...]
    lists: RunLists
    queries: Mapping[str, Attributes]
    documents: Mapping[str, Attributes]
    manifest: Mapping[str, Any]
    unjudged_queries: int
    without_candidates: int

    def as_dict(self) -> dict[str, Any]:
        """The figures alone, as `evaluation.json` has them."""
        ranked = [document for documents in self.lists.ranked.values() for document in documents]
        return {
            "run_id": self.run_id,
            "measures": list(MEASURES.values()),
            "interval": {
                "method": "paired percentile bootstrap over queries",
                "level": LEVEL,
                "resamples": RESAMPLES,
                "seed": SEED,
                "fewest_queries": FEWEST_QUERIES,
            },
            "queries": {
                "judged": len(self.results),
                "without_judgements": self.unjudged_queries,
                "judged_without_candidates": self.without_candidates,
            },
            "ranked": len(ranked),
            "truncated": sum(document.truncated for document in ranked),
            "rejected": dict(sorted(self.lists.rejects.items())),
            "overall": asdict(self.overall),
            "slices": [asdict(one) for one in self.slices],
        }


def evaluate(storage: Storage, tables: LakeTables, paths: RunPaths) -> Evaluation:
    """Judge a run by the lake's qrels, in one process.

    Only queries of the queries table that have a judgement count; one that has no candidates or no results counts as 0.

    Raises:
        StorageError: a table or the run is not there.
        SchemaError: a table lacks a column, or no query of the lake has a judgement.
    """
    lists = read_run_lists(storage, tables, paths)
    queries = read_attributes(storage, tables.queries, schemas.QUERIES, (*DIMENSIONS, NAME))
    judged = sorted(queries.keys() & lists.judgements.keys())
    if not judged:
        raise SchemaError(f"{tables.qrels}: judges no query of {tables.queries}; check that the query ids are the same")
    candidates = {one.doc_id for query in judged for one in lists.candidates.get(query, ())}
    documents = read_attributes(storage, tables.documents, schemas.DOCUMENTS, (NAME,), candidates)
    results = measure([lists.of_query(query) for query in judged], lists.ordered)
    labels = {query: _labels(query, queries, documents, lists) for query in judged}
    return Evaluation(
        run_id=paths.run_id,
        overall=summarise(results),
        slices=tuple(slice_results(results, labels)),
        results=tuple(results),
        lists=lists,
        queries={query: queries[query] for query in judged},
        documents=documents,
        manifest=read_manifest(storage, paths.output, paths.run_id) or {},
        unjudged_queries=len(queries) - len(judged),
        without_candidates=sum(query not in lists.candidates for query in judged),
    )


def _labels(
    query: str, queries: Mapping[str, Attributes], documents: Mapping[str, Attributes], lists: RunLists
) -> dict[str, str]:
    extra = queries[query].extra
    labels = {name: extra[name] for name in DIMENSIONS if name in extra}
    held = Counter(documents[one.doc_id].modality for one in lists.candidates.get(query, ()) if one.doc_id in documents)
    found = "nothing" if not held else next(iter(held)) if len(held) == 1 else "mixed"
    labels[MODALITY] = f"{queries[query].modality}→{found}"
    return labels
