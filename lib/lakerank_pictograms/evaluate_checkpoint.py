"""Evaluate a checkpoint for its model card: `python -m lakerank_pictograms.evaluate_checkpoint CHECKPOINT FOLDER`.

CHECKPOINT may be a config instead (`*.yaml`), whose model and scoring sections are used.

FOLDER holds a lake whose queries have the columns `task` and `slice` (documents, queries, qrels, candidates and, where
there are some, candidates_hard), as `python -m lakerank_pictograms --train DIR` writes it to DIR/judging.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lakerank import schemas
from lakerank.config import load_config
from lakerank.errors import ConfigError, LakerankError, SchemaError
from lakerank.lake.blobs import Blob, BlobRef, fetch
from lakerank.lake.columns import decode_text
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import fragments, read_table_file
from lakerank.records import Candidate, Document, DocumentGroup, Query, Reject, Reranker, ScoredPair
from lakerank_evaluation.analysis.averages import Slice
from lakerank_evaluation.inputs import LakeTables
from lakerank_evaluation.metrics.bootstrap import Summary, query_hashes
from lakerank_evaluation.metrics.measures import PRIMARY, QueryFigures, list_figures, list_random_baseline
from lakerank_evaluation.pairs import MODALITY_NAMES
from lakerank_evaluation.rows import attribute_batches


@dataclass(frozen=True, slots=True)
class Attributes:
    """A row's location, its modality (of MODALITY_NAMES), and the values of its extra columns that are not null."""

    ref: BlobRef
    modality: str
    extra: Mapping[str, str]


def read_attributes(
    storage: Storage, uri: str, expected: pa.Schema, extras: Sequence[str], ids: Collection[str] | None = None
) -> dict[str, Attributes]:
    """Attributes by id of the rows with the given ids (all by default). Of rows that share an id the first counts.

    Texts and images are only read where a row group's statistics leave open which rows have them.
    """
    id_column = expected.names[0]
    value_set = None if ids is None else pa.array(list(ids), pa.string())
    attributes: dict[str, Attributes] = {}
    for fragment in fragments(storage, uri, expected):
        for group in range(fragment.row_groups):
            for numbers, batch in attribute_batches(storage, fragment.file, group, expected, extras):
                rows = batch.append_column("row", pa.array(numbers))
                if value_set is not None:
                    rows = rows.filter(pc.is_in(rows[id_column], value_set=value_set))
                for row in rows.to_pylist():
                    extra = {name: row[name] for name in extras if row[name] is not None}
                    ref = BlobRef(fragment.file.uri, group, row["row"])
                    attributes.setdefault(row[id_column], Attributes(ref, MODALITY_NAMES[row["modality"]], extra))
    return attributes


@dataclass(slots=True)
class LakeLists:
    """Everything about a lake by query. `ordered` says whether the first stage gave its candidates an order."""

    judgements: dict[str, dict[str, int]] = field(default_factory=dict)
    candidates: dict[str, list[Candidate]] = field(default_factory=dict)
    ordered: bool = False


def read_lake_lists(storage: Storage, tables: LakeTables) -> LakeLists:
    """Judgements, and candidates as the first stage orders them.

    Raises:
        StorageError: a table is not there.
        SchemaError: a table lacks a column.
    """
    lists = LakeLists()
    for row in _table_rows(storage, tables.qrels, schemas.QRELS):
        lists.judgements.setdefault(row["query_id"], {})[row["doc_id"]] = row["relevance"]
    candidates: defaultdict[str, dict[str, Candidate]] = defaultdict(dict)
    for row in _table_rows(storage, tables.candidates, schemas.CANDIDATES):
        candidates[row["query_id"]].setdefault(row["doc_id"], Candidate(**row))
    for query_id, by_document in candidates.items():
        lists.candidates[query_id] = sorted(by_document.values(), key=first_stage_order)
    lists.ordered = any(map(_has_order, chain.from_iterable(lists.candidates.values())))
    return lists


def first_stage_order(candidate: Candidate) -> tuple[float, float, str]:
    """Sorts as the first stage does: by rank, else by falling score; what has neither comes last, by id."""
    rank, score = candidate.first_stage_rank, candidate.first_stage_score
    by_rank = float("inf") if rank is None else float(rank)
    by_score = float("inf") if score is None or score != score else -score
    return by_rank, by_score, candidate.doc_id


def _has_order(candidate: Candidate) -> bool:
    return candidate.first_stage_rank is not None or candidate.first_stage_score is not None


def _table_rows(storage: Storage, uri: str, expected: pa.Schema) -> Iterator[dict[str, Any]]:
    for fragment in fragments(storage, uri, expected):
        for _, _, batch in read_table_file(storage, fragment.file, expected):
            yield from batch.to_pylist()


#: Extra columns of the queries table that name a row of the table.
LABELS = ("task", "slice")

#: Candidate lists of an evaluation lake, and the headings of their tables.
CANDIDATE_LISTS = {"candidates": "Random candidates", "candidates_hard": "Candidates of the same group"}


def evaluate(
    reranker: Reranker, storage: Storage, folder: str, queries_per_slice: int = 10, seed: int = 0
) -> dict[str, list[Slice]]:
    """Figures by candidate list, for every task and slice, over all candidates of a few of its queries.

    `seed` draws the queries. Each document is scored once, in however many lists it is.

    Raises:
        StorageError: a table is not there.
        SchemaError: a table lacks a column, or no query has a task, a slice, candidates and a judgement.
    """
    tables = [_tables(folder, name) for name in CANDIDATE_LISTS if storage.exists(_uri(folder, name))]
    tables = tables or [_tables(folder, "candidates")]
    lists = {table.candidates: read_lake_lists(storage, table) for table in tables}
    queries = read_attributes(storage, _uri(folder, "queries"), schemas.QUERIES, LABELS)
    rows = _draw(_judged(queries, lists.values()), queries_per_slice, seed)
    chosen = [name for names in rows.values() for name in names]
    if not chosen:
        raise SchemaError(f"{folder}: no query has {', '.join(LABELS)}, candidates and a judgement above 0")
    waiting: dict[str, dict[str, None]] = defaultdict(dict)  # ordered, each query once
    for name in chosen:
        for lake_lists in lists.values():
            for candidate in lake_lists.candidates[name]:
                waiting[candidate.doc_id][name] = None
    groups = _groups(storage, folder, {name: queries[name] for name in chosen}, waiting)
    order = _reranked(reranker.score_groups(groups))
    return {
        uri: [_slice(label, names, lake_lists, order) for label, names in rows.items()]
        for uri, lake_lists in lists.items()
    }


def markdown(slices: Sequence[Slice], title: str) -> str:
    """One line a slice: queries, then nDCG@10 of the random baseline, of the first stage and of the checkpoint."""
    lines = [
        f"{title}, {PRIMARY}:",
        "",
        "| task | slice | queries | random | first stage | checkpoint |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for part in slices:
        first = "–" if part.first_stage is None else f"{part.first_stage[PRIMARY]:.3f}"
        figures = f"{part.random[PRIMARY]:.3f} | {first} | {part.reranked[PRIMARY]:.3f}"
        lines.append(f"| {part.dimension} | {part.value} | {part.queries} | {figures} |")
    return "\n".join(lines) + "\n"


def _uri(folder: str, name: str) -> str:
    return join(folder, f"{name}.parquet")


def _tables(folder: str, candidates: str) -> LakeTables:
    return LakeTables(*(_uri(folder, name) for name in ("documents", "queries", candidates, "qrels")))


def _judged(queries: Mapping[str, Attributes], lists: Iterable[LakeLists]) -> dict[str, Attributes]:
    """Queries that have both labels, a relevant document, and candidates in every list."""
    every = list(lists)
    return {
        name: attributes
        for name, attributes in queries.items()
        if attributes.extra.keys() >= set(LABELS)
        and all(name in each.candidates and any(each.judgements.get(name, {}).values()) for each in every)
    }


def _slice(label: tuple[str, str], names: Sequence[str], lists: LakeLists, order: Mapping[str, Sequence[str]]) -> Slice:
    """Figures of some queries. `order` has the documents of every candidate list by query; only those of `lists`
    count.
    """
    judgements = [lists.judgements.get(name, {}) for name in names]
    candidates = [[candidate.doc_id for candidate in lists.candidates.get(name, ())] for name in names]
    reranked = [
        [doc_id for doc_id in order.get(name, ()) if doc_id in set(doc_ids)]
        for name, doc_ids in zip(names, candidates, strict=True)
    ]
    tables = {"reranked": list_figures(reranked, judgements)}
    if lists.ordered:
        tables["first_stage"] = list_figures(candidates, judgements)
    figures = QueryFigures(tables, list_random_baseline(candidates, judgements))
    return Slice.of(Summary(figures, query_hashes(names)), *label)


def _draw(queries: Mapping[str, Attributes], most: int, seed: int) -> dict[tuple[str, str], list[str]]:
    """Up to `most` queries of each (task, slice), in the order of the table."""
    by_label: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, attributes in queries.items():
        by_label[attributes.extra["task"], attributes.extra["slice"]].append(name)
    return {
        label: names if len(names) <= most else sorted(random.Random(seed).sample(names, most))
        for label, names in by_label.items()
    }


def _groups(
    storage: Storage, folder: str, queries: Mapping[str, Attributes], waiting: Mapping[str, Iterable[str]]
) -> Iterator[DocumentGroup]:
    """Every candidate document once, with the queries that wait for it."""
    known = {
        blob.id: Query(blob.id, _text(blob), blob.image)
        for blob in _rows(storage, queries.values(), schemas.QUERIES.names[0])
    }
    documents = read_attributes(storage, _uri(folder, "documents"), schemas.DOCUMENTS, (), waiting)
    for blob in _rows(storage, documents.values(), schemas.DOCUMENTS.names[0]):
        document = Document(blob.id, _text(blob), blob.image)
        yield DocumentGroup(document, tuple(known[name] for name in waiting[blob.id]))


def _rows(storage: Storage, attributes: Iterable[Attributes], id_column: str) -> Iterator[Blob]:
    refs = sorted((row.ref for row in attributes), key=lambda ref: (ref.file, ref.row_group, ref.row))
    return fetch(storage, refs, id_column)


def _text(blob: Blob) -> str | None:
    try:
        return decode_text(blob.text)
    except UnicodeDecodeError as error:
        raise SchemaError(f"the text of {blob.id!r} is not UTF-8; a checkpoint is evaluated on clean rows") from error


def _reranked(results: Iterable[ScoredPair | Reject]) -> dict[str, tuple[str, ...]]:
    """Documents of each query by falling logit, then id; rejected documents count as not retrieved."""
    logits: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for result in results:
        if isinstance(result, ScoredPair):
            logits[result.query_id].append((-result.logit, result.doc_id))
    return {query: tuple(doc for _, doc in sorted(scored)) for query, scored in logits.items()}


def _load(checkpoint: str, adapter: str | None, threads: int | None) -> Reranker:
    """The reranker of a checkpoint or of a config; torch is imported here, not for those who ask for --help."""
    from lakerank.cli import resolve
    from lakerank.limits import Limits
    from lakerank.model.spec import CheckpointSpec, RuntimeOptions

    hosting = RuntimeOptions(device_threads=threads, reproducible=False)
    if not checkpoint.endswith((".yaml", ".yml")):
        return CheckpointSpec(checkpoint, adapter=adapter).load("auto", Limits(), hosting)
    config = load_config(checkpoint, [] if adapter is None else [f"model.adapter={json.dumps(adapter)}"])
    if len(config.rerankers) > 1:
        raise ConfigError([f"{checkpoint}: model: one reranker is evaluated, or one for texts and one for images"])
    return resolve.model_spec(config.rerankers[0]).load(config.device, resolve.limits(config.scoring), hosting)


def main() -> int:
    """Print a Markdown table for each candidate list; 2 when the checkpoint or the lake cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m lakerank_pictograms.evaluate_checkpoint", description=__doc__)
    parser.add_argument("checkpoint", help="folder, hub id, `embedded`, or a config (*.yaml) that names a reranker")
    parser.add_argument("folder", help="an evaluation lake")
    parser.add_argument("--adapter", help="a LoRA adapter for the checkpoint")
    parser.add_argument("--queries", type=int, default=10, metavar="N", help="at most so many a task and slice")
    parser.add_argument("--threads", type=int, metavar="N", help="torch's threads on a CPU")
    arguments = parser.parse_args()
    storage = Storage()
    try:
        reranker = _load(arguments.checkpoint, arguments.adapter, arguments.threads)
        figures = evaluate(reranker, storage, arguments.folder, arguments.queries)
        for name, title in CANDIDATE_LISTS.items():
            if slices := figures.get(_uri(arguments.folder, name)):
                sys.stdout.write(markdown(slices, title) + "\n")
    except LakerankError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
