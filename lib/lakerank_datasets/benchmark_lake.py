"""Ingestion of a published benchmark into the four tables of a lake."""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar, cast

import pyarrow as pa

from lakerank.errors import ConfigError
from lakerank.ingest.folder import output_faults
from lakerank.ingest.rejects import SourceFault, SourceReject
from lakerank.ingest.tables import ContentRow, TableName, TableWriter, WrittenTable
from lakerank.lake.storage import Storage
from lakerank.records import Candidate, Qrel
from lakerank_datasets.first_stage import Bm25Index, FirstStage, choose_first_stages, part_candidates
from lakerank_datasets.layouts import read_benchmark
from lakerank_datasets.layouts.benchmark import DocumentColumns, Part, Pool, QueryColumns, every_id
from lakerank_datasets.layouts.benchmark_folder import BenchmarkFolder
from lakerank_datasets.layouts.mkqa import is_answered, searchable_answer, searchable_passage

#: The tables of a lake, and their extra columns, all of texts.
TABLES: Mapping[TableName, tuple[str, ...]] = {
    "documents": DocumentColumns._fields,
    "queries": QueryColumns._fields,
    "candidates": (),
    "qrels": (),
}

P = TypeVar("P", Candidate | SourceReject, Qrel | SourceReject)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LayoutOptions:
    """How a benchmark is ingested, with `depth` candidates of a query.

    A pool of at most `all_pairs` documents may be ranked whole where nothing else gives a first stage. Without
    `all_documents`, only documents that are candidates are written. With `plain_ids`, ids are the publisher's, without
    the dataset's name in front.
    """

    layout: str = "auto"
    split: str | None = None
    runs: tuple[str, ...] = ()
    depth: int = 100
    all_pairs: int = 1000
    all_documents: bool = True
    plain_ids: bool = False


@dataclass(frozen=True, slots=True)
class BenchmarkLake:
    """The result of an ingestion, in the order of the job's last line. `first_stage` counts parts by their method."""

    layout: str
    output: str
    parts: list[str]
    first_stage: dict[str, int]
    tables: dict[TableName, WrittenTable]
    rejected: int
    rejected_by_fault: dict[str, int]
    rejects: dict[str, str]
    seconds: float

    def summary(self) -> dict[str, Any]:
        """The job's last line of standard output."""
        return asdict(self) | {"seconds": round(self.seconds, 3)}


def ingest_benchmark(
    storage: Storage,
    source_uri: str,
    output: str,
    options: LayoutOptions,
    follow_links: bool = False,
    progress: Callable[[int], object] = lambda rows: None,
) -> BenchmarkLake:
    """Write `OUTPUT/documents/`, `queries/`, `candidates/` and `qrels/` from a benchmark's own files, streaming.

    Lines and rows that cannot be read do not stop it: they are counted by fault and listed in
    `OUTPUT/rejects/<table>.jsonl`. A BM25 index is in memory, one pool at a time.

    Raises:
        ConfigError: the output is inside the source, a run belongs to no part, or a part has no first stage.
        StorageError: a file or a column that the layout expects is not there, or the output cannot be written.
        IngestError: a table would be empty; earlier tables stay.
    """
    started = time.monotonic()
    if faults := output_faults(source_uri, output):
        raise ConfigError(faults)
    parts = read_benchmark(BenchmarkFolder(storage, source_uri, follow_links), options.layout, options.split)
    stages = choose_first_stages(parts, options.runs, options.all_pairs)
    if options.plain_ids and len({part.prefix for part in parts}) > 1:
        names = ", ".join(sorted(part.name for part in parts))
        raise ConfigError([f"--plain-ids: ids repeat between datasets; name the folder of one of {names}"])
    writers = {
        table: TableWriter(storage, output, table, [pa.field(name, pa.string()) for name in columns], progress)
        for table, columns in TABLES.items()
    }
    writer = _LakeWriter(storage, stages, options, writers)
    pools = {part.pool.name: part.pool for part in parts}
    for pool in pools.values():
        writer.write_pool(pool, [part for part in parts if part.pool.name == pool.name])
    judged: tuple[TableName, ...] = ("qrels",) if any(part.judgements for part in parts) else ()
    for name in (*judged, "queries", "candidates"):
        writers[name].require_rows(source_uri)
    for pool in pools.values():
        writer.write_documents(pool)
    writers["documents"].require_rows(source_uri)
    tables = {name: table.finish() for name, table in writers.items()}
    rejected: Counter[str] = sum((Counter(table.rejected_by_fault) for table in tables.values()), Counter())
    result = BenchmarkLake(
        parts[0].columns.benchmark,
        output,
        [part.name for part in parts],
        dict(sorted(Counter(stage.method for stage in stages.values()).items())),
        tables,
        rejected.total(),
        dict(sorted(rejected.items())),
        {name: table.rejects for name, table in tables.items() if table.rejects is not None},
        time.monotonic() - started,
    )
    counts = ", ".join(f"{table.rows} {name}" for name, table in result.tables.items())
    _log.info("%s: %s, %d rejects in %.1f s", result.layout, counts, result.rejected, result.seconds)
    return result


@dataclass
class _LakeWriter:
    """Writes queries, judgements and candidates part by part, then the documents, which may depend on candidates.

    Layouts have the publisher's ids; a part's and a pool's prefix are put before them here.
    """

    storage: Storage
    stages: Mapping[str, FirstStage]
    options: LayoutOptions
    tables: Mapping[TableName, TableWriter]
    candidates: set[str] = field(default_factory=set)  # ids of documents, where only these are written
    #: Id and answers of each query that is judged by them, by the document that they are to be looked for in.
    answers: dict[str, list[tuple[str, list[str]]]] = field(default_factory=lambda: defaultdict(list))

    def write_pool(self, pool: Pool, parts: Sequence[Part]) -> None:
        """Write a pool's parts without its documents; they share one index."""
        is_searched = any(self.stages[part.name].method == "bm25" for part in parts)
        index = Bm25Index(pool.index()) if is_searched else None
        for part in parts:
            self._write_part(part, index)
            _log.info("%s: candidates from %s", part.name, self.stages[part.name].method)

    def write_documents(self, pool: Pool) -> None:
        """Write a pool's documents, and the judgements that depend on their texts."""
        prefix = self._prefix(pool)
        is_included = every_id if self.options.all_documents else lambda name: prefix + name in self.candidates
        for document in pool.documents(is_included, True):
            if isinstance(document, SourceReject):
                self.tables["documents"].add(document)
                continue
            document = replace(document, id=prefix + document.id)
            self.tables["documents"].add(document)
            if queries := self.answers.get(document.id):
                passage = searchable_passage(document.text or "")
                for query_id, answers in queries:
                    self.tables["qrels"].add(Qrel(query_id, document.id, int(is_answered(passage, answers))))

    def _prefix(self, of: Part | Pool) -> str:
        return "" if self.options.plain_ids else of.prefix

    def _write_part(self, part: Part, index: Bm25Index | None) -> None:
        judged_ids = None
        if part.judgements:
            judged = [row for row in part.judgements() if isinstance(row, Qrel)]
            judged_ids = {row.query_id for row in judged}
            if any(row.query_id == row.doc_id and row.relevance > 0 for row in judged):  # other documents, by chance
                part = replace(part, excludes_itself=False)
        queries: dict[str, ContentRow] = {}  # without images
        for query in part.queries():
            if isinstance(query, SourceReject):
                self.tables["queries"].add(query)
            elif judged_ids is None or query.id in judged_ids:
                self.tables["queries"].add(replace(query, id=self._prefix(part) + query.id))
                queries[query.id] = replace(query, image=None)
        self._write_candidates(part, queries, index)
        for judgement in part.judgements() if part.judgements else ():
            if isinstance(judgement, Qrel) and judgement.query_id not in queries:
                detail = f"{judgement.query_id} is judged, but is not among the queries"
                judgement = SourceReject(part.name, SourceFault.QUERY_NOT_FOUND, detail)
            self._add_pair("qrels", part, judgement)

    def _write_candidates(self, part: Part, queries: Mapping[str, ContentRow], index: Bm25Index | None) -> None:
        answers = self._answers(part, queries) if part.judgements is None else {}
        without = dict(answers)
        stage, depth = self.stages[part.name], self.options.depth
        for row in part_candidates(self.storage, stage, part, queries, index, depth):
            pair = self._add_pair("candidates", part, row)
            if isinstance(pair, Candidate) and isinstance(row, Candidate):
                self.candidates.update(() if self.options.all_documents else [pair.doc_id])
                if answers:
                    self.answers[pair.doc_id].append(answers[row.query_id])
                    without.pop(row.query_id, None)
        if without:  # judged with any one document, they count as queries without a hit
            for doc_id, _ in itertools.islice(part.pool.index(), 1):
                self.candidates.add(self._prefix(part.pool) + doc_id)
                self.answers[self._prefix(part.pool) + doc_id] += without.values()

    def _answers(self, part: Part, queries: Mapping[str, ContentRow]) -> dict[str, tuple[str, list[str]]]:
        """Id in the lake and answers of each query."""
        encoded = {name: cast("QueryColumns", query.extra).answers or "[]" for name, query in queries.items()}
        return {
            name: (self._prefix(part) + name, [searchable_answer(answer) for answer in json.loads(answers)])
            for name, answers in encoded.items()
        }

    def _add_pair(self, table: TableName, part: Part, pair: P) -> P:
        """Add a pair with the lake's ids, or a reject."""
        if not isinstance(pair, SourceReject):
            query_id, doc_id = self._prefix(part) + pair.query_id, self._prefix(part.pool) + pair.doc_id
            if isinstance(pair, Qrel):
                pair = Qrel(query_id, doc_id, pair.relevance)
            else:
                pair = Candidate(query_id, doc_id, pair.first_stage_score, pair.first_stage_rank)
        self.tables[table].add(pair)
        return pair
