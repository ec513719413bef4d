"""Ingestion of a published benchmark into the four tables of a lake."""

from __future__ import annotations

import itertools
import json
import logging
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
from lakerank.ingest.tables import ContentRow, Row, SourceFault, SourceReject, TableName, TableWriter, WrittenTable
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
    tables: dict[str, WrittenTable]
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
    progress: Callable[[int], None] = lambda rows: None,
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
    writers = {name: TableWriter(storage, output, name, columns) for name, columns in TABLES.items()}
    writer = _LakeWriter(storage, benchmark, stages, options, writers, progress)
    for pool in benchmark.pools:
        writer.write_pool(pool)
    judged: tuple[TableName, ...] = ("qrels",) if any(part.judgements for part in benchmark.parts) else ()
    for name in (*judged, "queries", "candidates"):
        writers[name].require_rows(source_uri)
    writer.write_documents()
    writers["documents"].require_rows(source_uri)
    finished = {name: table.finish() for name, table in writers.items()}
    rejected: Counter[str] = sum((table.faults for table in writers.values()), Counter())
    result = BenchmarkLake(
        benchmark.name,
        output,
        [part.name for part in benchmark.parts],
        dict(sorted(Counter(stages.methods.values()).items())),
        {name: written for name, (written, _) in finished.items()},
        rejected.total(),
        dict(sorted(rejected.items())),
        {name: uri for name, (_, uri) in finished.items() if uri is not None},
        time.monotonic() - started,
    )
    counts = ", ".join(f"{table.rows} {name}" for name, table in result.tables.items())
    _log.info("%s: %s, %d rejects in %.1f s", result.layout, counts, result.rejected, result.seconds)
    return result


def without_prefix(row: Row, prefix: str) -> Row:
    """A row with the publisher's own ids."""
    if isinstance(row, ContentRow):
        return replace(row, id=row.id.removeprefix(prefix))
    return replace(row, query_id=row.query_id.removeprefix(prefix), doc_id=row.doc_id.removeprefix(prefix))


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
        self._added: tuple[array[int], array[int]] = (array("q"), array("i"))
        self._documents: np.ndarray[Any, Any] = np.empty(0, np.int64)
        self._queries: np.ndarray[Any, Any] = np.empty(0, np.int32)

    def add(self, doc_id: str, query: int) -> None:
        """Add a document and a query's number; it can be looked up after `sort`."""
        self._added[0].append(hash(doc_id))
        self._added[1].append(query)

    def sort(self) -> None:
        """Sort the pairs for lookup."""
        documents, queries = (np.frombuffer(column, dtype=column.typecode) for column in self._added)
        order = np.argsort(documents, kind="stable")
        self._documents, self._queries = documents[order], queries[order]
        self._added = (array("q"), array("i"))

    def __contains__(self, doc_id: str) -> bool:
        return len(self.of(doc_id)) > 0

    def of(self, doc_id: str) -> Sequence[int]:
        """Numbers of a document's queries, in the order they were added."""
        key = np.int64(hash(doc_id))
        first, last = (np.searchsorted(self._documents, key, side) for side in ("left", "right"))
        numbers: list[int] = self._queries[first:last].tolist()
        return numbers


class _LakeWriter:
    """Writes queries, judgements and candidates part by part, then the documents, which may depend on candidates."""

    def __init__(
        self,
        storage: Storage,
        benchmark: Benchmark,
        stages: FirstStages,
        options: LayoutOptions,
        writers: Mapping[TableName, TableWriter],
        progress: Callable[[int], None],
    ) -> None:
        self._storage = storage
        self._benchmark = benchmark
        self._stages = stages
        self._options = options
        self._writers = writers
        self._progress = progress
        self._rows = 0
        self._candidates = CandidateQueries()
        self._answers: list[
            tuple[str, list[str]]
        ] = []  # id and answers of each query whose qrels are matches of answers
        self._with_candidates: set[str] = set()  # queries of the current part
        self._matcher = AnswerMatcher() if any(part.judged_by_answers for part in benchmark.parts) else None

    def _add(self, table: TableName, row: Row | SourceReject) -> None:
        if self._options.plain_ids and not isinstance(row, SourceReject):
            row = without_prefix(row, self._benchmark.parts[0].prefix)
        self._writers[table].add(row)
        if not isinstance(row, SourceReject):
            self._rows += 1
            self._progress(self._rows)

    def write_pool(self, pool: Pool) -> None:
        """Write a pool's parts without its documents; they share one index."""
        parts = [part for part in self._benchmark.parts if part.pool.name == pool.name]
        is_searched = any(self._stages.methods[part.name] == "bm25" for part in parts)
        index = Bm25Index(pool.index()) if is_searched else None
        for part in parts:
            self._write_part(part, index)
            _log.info("%s: candidates from %s", part.name, self._stages.methods[part.name])

    def write_documents(self) -> None:
        """Write the documents of every pool, and the judgements that depend on their texts."""
        self._candidates.sort()
        for pool in self._benchmark.pools:
            is_included = every_id if self._options.all_documents else self._candidates.__contains__
            for document in pool.documents(is_included):
                self._add("documents", document)
                if self._matcher and isinstance(document, ContentRow):
                    for judgement in self._judgements_of(document, self._matcher):
                        self._add("qrels", judgement)

    def _write_part(self, part: Part, index: Bm25Index | None) -> None:
        judged_ids = None
        if part.judgements:
            judged = [row for row in part.judgements() if isinstance(row, Qrel)]
            judged_ids = {row.query_id for row in judged}
            if any(row.query_id == row.doc_id and row.relevance > 0 for row in judged):  # other documents, by chance
                part = replace(part, excludes_itself=False)
        numbers: dict[str, int] = {}  # of the part's queries, by id
        for query in part.queries():
            if isinstance(query, SourceReject):
                self._add("queries", query)
            elif judged_ids is None or query.id in judged_ids:
                self._add("queries", query)
                numbers[query.id] = self._number(part, query)
                for candidate in self._others(part, self._stages.candidates(part, query, index, self._depth(part))):
                    self._add_candidate(candidate, numbers)
        for row in self._others(part, self._listed_candidates(part, numbers)):
            self._add_candidate(row, numbers)
        for judgement in part.judgements() if part.judgements else ():
            if isinstance(judgement, Qrel) and judgement.query_id not in numbers:
                detail = f"{judgement.query_id} is judged, but is not among the queries"
                judgement = SourceReject(part.name, SourceFault.QUERY_NOT_FOUND, detail)
            self._add("qrels", judgement)
        self._judge_without_candidates(part, numbers)

    def _number(self, part: Part, query: ContentRow) -> int:
        """A number for a query whose qrels are matches of answers, else -1."""
        if self._matcher is None or not part.judged_by_answers or not isinstance(query.extra, QueryColumns):
            return -1
        answers = json.loads(query.extra.answers or "[]")
        self._answers.append((query.id, [self._matcher.answer(answer) for answer in answers]))
        return len(self._answers) - 1

    def _listed_candidates(self, part: Part, numbers: dict[str, int]) -> Iterator[Candidate | SourceReject]:
        if part.candidates is not None:
            yield from (candidate for candidate in part.candidates() if candidate.query_id in numbers)
        elif part.name in self._stages.runs:
            run = self._stages.runs[part.name]
            yield from run_candidates(self._storage, run, part, numbers.keys(), self._depth(part))

    def _depth(self, part: Part) -> int:
        """Candidates to ask a first stage for: one more where the query itself may be among them."""
        return self._options.depth + part.excludes_itself

    def _others(self, part: Part, candidates: Iterable[Candidate | SourceReject]) -> Iterable[Candidate | SourceReject]:
        return without_itself(candidates, self._options.depth) if part.excludes_itself else candidates

    def _add_candidate(self, candidate: Candidate | SourceReject, numbers: dict[str, int]) -> None:
        self._add("candidates", candidate)
        if isinstance(candidate, Candidate) and (self._matcher is not None or not self._options.all_documents):
            self._candidates.add(candidate.doc_id, numbers[candidate.query_id])
            self._with_candidates.add(candidate.query_id)

    def _judge_without_candidates(self, part: Part, numbers: dict[str, int]) -> None:
        """Add a qrel of one document to a query without candidates, so that it counts as a query without a hit."""
        without = [number for query, number in numbers.items() if number >= 0 and query not in self._with_candidates]
        for doc_id, _ in itertools.islice(part.pool.index(), 1 if without else 0):
            for number in without:
                self._candidates.add(doc_id, number)
        self._with_candidates.clear()

    def _judgements_of(self, document: ContentRow, matcher: AnswerMatcher) -> Iterator[Qrel]:
        queries = self._candidates.of(document.id)
        passage = matcher.passage(document.text or "") if queries else ""
        for number in queries:
            query_id, answers = self._answers[number]
            yield Qrel(query_id, document.id, int(matcher.is_answered(passage, answers)))
