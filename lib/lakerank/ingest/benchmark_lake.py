"""Ingestion of a published benchmark into the four tables of a lake."""

from __future__ import annotations

import itertools
import json
import logging
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from lakerank.candidates.bm25 import Bm25Index
from lakerank.errors import ConfigError
from lakerank.ingest.first_stage import ALL_PAIRS, DEPTH, FirstStages, choose_first_stages, run_candidates
from lakerank.ingest.folder import output_faults
from lakerank.ingest.layouts import AUTO, read_benchmark
from lakerank.ingest.layouts.benchmark import Benchmark, DocumentColumns, Part, Pool, QueryColumns, every_id
from lakerank.ingest.layouts.benchmark_folder import BenchmarkFolder
from lakerank.ingest.layouts.mkqa import AnswerMatcher
from lakerank.ingest.tables import ContentRow, SourceFault, SourceReject, TableName, TableWriter, WrittenTable
from lakerank.lake.storage import Storage
from lakerank.records import Candidate, Qrel

#: The tables of a lake, and their extra columns.
TABLES: Mapping[TableName, tuple[str, ...]] = {
    "documents": DocumentColumns._fields,
    "queries": QueryColumns._fields,
    "candidates": (),
    "qrels": (),
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LayoutOptions:
    """How a benchmark is ingested. Without `all_documents`, only documents that are candidates are written.

    With `plain_ids`, ids are the publisher's, without the dataset's name in front.
    """

    layout: str = AUTO
    split: str | None = None
    runs: tuple[str, ...] = ()
    depth: int = DEPTH
    all_pairs: int = ALL_PAIRS
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
        StorageError: a file that the layout expects is not there, or the output cannot be written.
        SchemaError: a published table lacks a column.
        IngestError: a table would be empty; earlier tables stay.
    """
    started = time.monotonic()
    if faults := output_faults(source_uri, output):
        raise ConfigError(faults)
    benchmark = read_benchmark(BenchmarkFolder(storage, source_uri, follow_links), options.layout, options.split)
    stages = choose_first_stages(benchmark, options.runs, options.all_pairs)
    if options.plain_ids and len({part.prefix for part in benchmark.parts}) > 1:
        names = ", ".join(sorted(part.name for part in benchmark.parts))
        raise ConfigError([f"--plain-ids: ids repeat between datasets; name the folder of one of {names}"])
    writers = {name: TableWriter(storage, output, name, columns, progress) for name, columns in TABLES.items()}
    writer = _LakeWriter(storage, benchmark, stages, options, writers)
    for pool in benchmark.pools:
        writer.write_pool(pool)
    judged: tuple[TableName, ...] = ("qrels",) if any(part.judgements for part in benchmark.parts) else ()
    for name in (*judged, "queries", "candidates"):
        writers[name].require_rows(source_uri)
    writer.write_documents()
    writers["documents"].require_rows(source_uri)
    tables = {name: table.finish() for name, table in writers.items()}
    rejected: Counter[str] = sum((Counter(table.rejected_by_fault) for table in tables.values()), Counter())
    result = BenchmarkLake(
        benchmark.name,
        output,
        [part.name for part in benchmark.parts],
        dict(sorted(Counter(stages.methods.values()).items())),
        tables,
        rejected.total(),
        dict(sorted(rejected.items())),
        {name: table.rejects for name, table in tables.items() if table.rejects is not None},
        time.monotonic() - started,
    )
    counts = ", ".join(f"{table.rows} {name}" for name, table in result.tables.items())
    _log.info("%s: %s, %d rejects in %.1f s", result.layout, counts, result.rejected, result.seconds)
    return result


def without_itself(candidates: Iterable[Candidate | SourceReject], depth: int) -> Iterator[Candidate | SourceReject]:
    """The `depth` best candidates of each query without the document of the query's own id; ranks have no gap."""
    for query_id, group in itertools.groupby(candidates, lambda row: getattr(row, "query_id", None)):
        rank = 0
        for row in group:
            if not isinstance(row, Candidate):
                yield row
            elif row.doc_id != query_id and rank < depth:
                rank += 1
                yield row if row.first_stage_rank is None else replace(row, first_stage_rank=rank)


class CandidateQueries:
    """Queries by candidate document, at twelve bytes a pair: corpora are read once, after the first stage.

    Ids are kept as 64-bit hashes. A collision of two among a billion would add one document or judgement.
    """

    def __init__(self) -> None:
        self._documents, self._queries = array("q"), array("i")

    def add(self, doc_id: str, query: int) -> None:
        """Add a document and a query's number."""
        self._documents.append(hash(doc_id))
        self._queries.append(query)

    def lookup(self) -> Callable[[str], Sequence[int]]:
        """Gives the numbers of a document's queries, in the order they were added."""
        documents, queries = np.frombuffer(self._documents, np.int64), np.frombuffer(self._queries, np.int32)
        order = np.argsort(documents, kind="stable")
        documents, queries = documents[order], queries[order]

        def numbers(doc_id: str) -> Sequence[int]:
            key = np.int64(hash(doc_id))
            first, last = (np.searchsorted(documents, key, side) for side in ("left", "right"))
            return [int(query) for query in queries[first:last]]

        return numbers


@dataclass
class _LakeWriter:
    """Writes queries, judgements and candidates part by part, then the documents, which may depend on candidates.

    Layouts have the publisher's ids; a part's and a pool's prefix are put before them here.
    """

    storage: Storage
    benchmark: Benchmark
    stages: FirstStages
    options: LayoutOptions
    tables: Mapping[TableName, TableWriter]
    candidates: CandidateQueries = field(default_factory=CandidateQueries)
    answers: list[tuple[str, list[str]]] = field(default_factory=list)  # of each query that is judged by answers
    matcher: AnswerMatcher | None = None

    def __post_init__(self) -> None:
        if any(part.judged_by_answers for part in self.benchmark.parts):
            self.matcher = AnswerMatcher()

    def write_pool(self, pool: Pool) -> None:
        """Write a pool's parts without its documents; they share one index."""
        parts = [part for part in self.benchmark.parts if part.pool.name == pool.name]
        is_searched = any(self.stages.methods[part.name] == "bm25" for part in parts)
        index = Bm25Index(pool.index()) if is_searched else None
        for part in parts:
            self._write_part(part, index)
            _log.info("%s: candidates from %s", part.name, self.stages.methods[part.name])

    def write_documents(self) -> None:
        """Write the documents of every pool, and the judgements that depend on their texts."""
        queries_of = self.candidates.lookup()
        for pool in self.benchmark.pools:
            self._write_documents(pool, queries_of)

    def _write_documents(self, pool: Pool, queries_of: Callable[[str], Sequence[int]]) -> None:
        prefix = self._prefix(pool)
        is_included = every_id if self.options.all_documents else lambda name: bool(queries_of(prefix + name))
        for document in pool.documents(is_included, True):
            if isinstance(document, SourceReject):
                self.tables["documents"].add(document)
                continue
            document = replace(document, id=prefix + document.id)
            self.tables["documents"].add(document)
            for judgement in self._judgements_of(document, queries_of(document.id)):
                self.tables["qrels"].add(judgement)

    def _prefix(self, of: Part | Pool) -> str:
        return "" if self.options.plain_ids else of.prefix

    def _add_pair(self, table: TableName, part: Part, pair: Candidate | Qrel | SourceReject) -> None:
        if not isinstance(pair, SourceReject):
            query_id, doc_id = self._prefix(part) + pair.query_id, self._prefix(part.pool) + pair.doc_id
            pair = replace(pair, query_id=query_id, doc_id=doc_id)
        self.tables[table].add(pair)

    def _write_part(self, part: Part, index: Bm25Index | None) -> None:
        judged_ids = None
        if part.judgements:
            judged = [row for row in part.judgements() if isinstance(row, Qrel)]
            judged_ids = {row.query_id for row in judged}
            if any(row.query_id == row.doc_id and row.relevance > 0 for row in judged):  # other documents, by chance
                part = replace(part, excludes_itself=False)
        numbers: dict[str, int] = {}  # of the part's queries, by id
        with_candidates: set[str] = set()
        for query in part.queries():
            if isinstance(query, SourceReject):
                self.tables["queries"].add(query)
            elif judged_ids is None or query.id in judged_ids:
                self.tables["queries"].add(replace(query, id=self._prefix(part) + query.id))
                numbers[query.id] = self._number(part, query)
                found = self.stages.candidates(part, query, index, self._depth(part))
                self._add_candidates(part, found, numbers, with_candidates)
        self._add_candidates(part, self._listed_candidates(part, numbers), numbers, with_candidates)
        for judgement in part.judgements() if part.judgements else ():
            if isinstance(judgement, Qrel) and judgement.query_id not in numbers:
                detail = f"{judgement.query_id} is judged, but is not among the queries"
                judgement = SourceReject(part.name, SourceFault.QUERY_NOT_FOUND, detail)
            self._add_pair("qrels", part, judgement)
        self._judge_without_candidates(part, [n for query, n in numbers.items() if query not in with_candidates])

    def _number(self, part: Part, query: ContentRow) -> int:
        """A number for a query whose qrels are matches of answers, else -1."""
        if self.matcher is None or not part.judged_by_answers or not isinstance(query.extra, QueryColumns):
            return -1
        answers = json.loads(query.extra.answers or "[]")
        self.answers.append((self._prefix(part) + query.id, [self.matcher.answer(answer) for answer in answers]))
        return len(self.answers) - 1

    def _listed_candidates(self, part: Part, numbers: dict[str, int]) -> Iterator[Candidate | SourceReject]:
        if part.candidates is not None:
            yield from (candidate for candidate in part.candidates() if candidate.query_id in numbers)
        elif part.name in self.stages.runs:
            run = self.stages.runs[part.name]
            yield from run_candidates(self.storage, run, part, numbers.keys(), self._depth(part))

    def _depth(self, part: Part) -> int:
        """Candidates to ask a first stage for: one more where the query itself may be among them."""
        return self.options.depth + part.excludes_itself

    def _add_candidates(
        self, part: Part, rows: Iterable[Candidate | SourceReject], numbers: dict[str, int], with_candidates: set[str]
    ) -> None:
        is_looked_up = self.matcher is not None or not self.options.all_documents
        for row in without_itself(rows, self.options.depth) if part.excludes_itself else rows:
            self._add_pair("candidates", part, row)
            if isinstance(row, Candidate) and is_looked_up:
                self.candidates.add(self._prefix(part.pool) + row.doc_id, numbers[row.query_id])
                with_candidates.add(row.query_id)

    def _judge_without_candidates(self, part: Part, numbers: Sequence[int]) -> None:
        """Add a qrel of one document to queries without candidates, so that they count as queries without a hit."""
        if part.judged_by_answers and numbers:
            for doc_id, _ in itertools.islice(part.pool.index(), 1):
                for number in numbers:
                    self.candidates.add(self._prefix(part.pool) + doc_id, number)

    def _judgements_of(self, document: ContentRow, queries: Sequence[int]) -> Iterator[Qrel]:
        if self.matcher and queries:
            passage = self.matcher.passage(document.text or "")
            for query_id, answers in (self.answers[number] for number in queries):
                yield Qrel(query_id, document.id, int(self.matcher.is_answered(passage, answers)))
