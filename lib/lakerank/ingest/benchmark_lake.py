"""A published benchmark in, all four tables of a lake out."""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from lakerank.errors import ConfigError
from lakerank.ingest.answers import AnswerMatcher
from lakerank.ingest.bm25 import Bm25Index
from lakerank.ingest.first_stage import ALL_PAIRS, DEPTH, Choice, choose, run_candidates
from lakerank.ingest.ingestion import output_faults
from lakerank.ingest.items import Item, Row, SourceFault, SourceReject
from lakerank.ingest.jsonl import TableName
from lakerank.ingest.layouts.benchmark import Benchmark, DocumentColumns, Part, Pool, QueryColumns
from lakerank.ingest.layouts.catalog import AUTO, read_benchmark
from lakerank.ingest.layouts.published import Published
from lakerank.ingest.rejects import Rejects
from lakerank.ingest.waiting import WaitingQueries
from lakerank.ingest.writer import TableWriter, WrittenTable
from lakerank.lake.storage import Storage, join
from lakerank.records import Candidate, Qrel

TABLES: tuple[TableName, ...] = ("documents", "queries", "candidates", "qrels")

_EXTRA: dict[TableName, tuple[str, ...]] = {"documents": DocumentColumns._fields, "queries": QueryColumns._fields}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LayoutOptions:
    """How a benchmark becomes a lake. Without `all_documents`, only those that are candidates are written."""

    layout: str = AUTO
    split: str | None = None
    runs: tuple[str, ...] = ()
    depth: int = DEPTH
    all_pairs: int = ALL_PAIRS
    all_documents: bool = True


@dataclass(frozen=True, slots=True)
class BenchmarkLake:
    """What was written. `first_stage` counts parts by where their candidates come from."""

    layout: str
    output: str
    parts: tuple[str, ...]
    first_stage: dict[str, int]
    tables: dict[str, WrittenTable]
    rejected_by_fault: dict[str, int]
    rejects: dict[str, str]
    seconds: float

    def summary(self) -> dict[str, Any]:
        """The job's last line of standard output."""
        tables = {name: asdict(table) for name, table in self.tables.items()}
        return {
            "layout": self.layout,
            "output": self.output,
            "parts": list(self.parts),
            "first_stage": self.first_stage,
            "tables": tables,
            "rejected": sum(self.rejected_by_fault.values()),
            "rejected_by_fault": self.rejected_by_fault,
            "rejects": self.rejects,
            "seconds": round(self.seconds, 3),
        }


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
    `OUTPUT/rejects/<table>.jsonl`. A BM25 index is held in memory, one pool at a time.

    Raises:
        ConfigError: the output lies inside the source, a run belongs to no part, or a part has no first stage.
        StorageError: a file that the layout expects is not there, or the output cannot be written.
        SchemaError: a published table lacks a column.
    """
    started = time.monotonic()
    if faults := output_faults(source_uri, output):
        raise ConfigError(faults)
    benchmark = read_benchmark(Published(storage, source_uri, follow_links), options.layout, options.split)
    choice = choose(benchmark, options.runs, options.all_pairs)
    lake = _Lake(storage, output, progress)
    writing = _Writing(storage, benchmark, choice, options, lake)
    for pool in benchmark.pools:
        writing.write_pool(pool)
    writing.write_documents()
    tables, rejects = lake.finish()
    done = BenchmarkLake(
        benchmark.name,
        output,
        tuple(part.name for part in benchmark.parts),
        dict(sorted(Counter(choice.methods.values()).items())),
        tables,
        dict(sorted(lake.faults().items())),
        rejects,
        time.monotonic() - started,
    )
    counts = ", ".join(f"{table.rows} {name}" for name, table in tables.items())
    _log.info("%s: %s, %d rejects in %.1f s", done.layout, counts, lake.faults().total(), done.seconds)
    return done


class _Lake:
    """The four tables as they grow, and what could not be read for each."""

    def __init__(self, storage: Storage, output: str, progress: Callable[[int], None]) -> None:
        self._storage = storage
        self._output = output
        self._progress = progress
        self._rows = 0
        self._writers = {name: TableWriter(storage, join(output, name), name, _EXTRA.get(name, ())) for name in TABLES}
        self._rejects = {name: Rejects() for name in TABLES}

    def add(self, table: TableName, row: Row | SourceReject) -> bool:
        """Write a row, or count why there is none; whether there was a row."""
        if isinstance(row, SourceReject):
            self._rejects[table].add(row)
            return False
        self._writers[table].write(row)
        self._rows += 1
        self._progress(self._rows)
        return True

    def finish(self) -> tuple[dict[str, WrittenTable], dict[str, str]]:
        """End the tables; what was written, and where the lists of rejects are."""
        tables: dict[str, WrittenTable] = {name: writer.finish() for name, writer in self._writers.items()}
        uris = {
            name: self._rejects[name].save(self._storage, join(self._output, "rejects", f"{name}.jsonl"))
            for name in TABLES
        }
        return tables, {name: uri for name, uri in uris.items() if uri is not None}

    def faults(self) -> Counter[str]:
        """Rejects of all tables by fault."""
        return sum((rejects.counts for rejects in self._rejects.values()), Counter())


class _Writing:
    """Queries, judgements and candidates part by part; then the documents, which may depend on the candidates."""

    def __init__(
        self, storage: Storage, benchmark: Benchmark, choice: Choice, options: LayoutOptions, lake: _Lake
    ) -> None:
        self._storage = storage
        self._benchmark = benchmark
        self._choice = choice
        self._options = options
        self._lake = lake
        self._waiting = WaitingQueries()
        self._asked: list[tuple[str, list[str]]] = []  # id and answers of each query that is judged by them
        self._helped: set[str] = set()  # queries of the part at hand that have candidates
        self._matcher = AnswerMatcher() if any(part.judged_by_answers for part in benchmark.parts) else None

    def write_pool(self, pool: Pool) -> None:
        """Everything of a pool's parts but the documents; an index is kept for all of them."""
        parts = [part for part in self._benchmark.parts if part.pool.name == pool.name]
        searched = any(self._choice.methods[part.name] == "bm25" for part in parts)
        index = Bm25Index(pool.index()) if searched else None
        for part in parts:
            self._write_part(part, index)
            _log.info("%s: candidates from %s", part.name, self._choice.methods[part.name])

    def write_documents(self) -> None:
        """The documents of every pool, and the judgements that their texts decide."""
        self._waiting.settle()
        for pool in self._benchmark.pools:
            wanted = (lambda doc_id: True) if self._options.all_documents else self._waiting.__contains__
            for document in pool.documents(wanted):
                if self._lake.add("documents", document) and isinstance(document, Item) and self._matcher:
                    for judgement in self._judged(document, self._matcher):
                        self._lake.add("qrels", judgement)

    def _write_part(self, part: Part, index: Bm25Index | None) -> None:
        judged = None if part.judgements is None else _judged_queries(part)
        stage = self._choice.stage(part, index, self._options.depth)
        known: dict[str, int] = {}
        for query in part.queries():
            if isinstance(query, Item) and judged is not None and query.id not in judged:
                continue
            if self._lake.add("queries", query) and isinstance(query, Item):
                known[query.id] = self._number(part, query)
                for candidate in stage.candidates(query) if stage is not None else ():
                    self._add_candidate(candidate, known)
        for row in self._listed_candidates(part, known):
            if isinstance(row, SourceReject):
                self._lake.add("candidates", row)
            else:
                self._add_candidate(row, known)
        for judgement in part.judgements() if part.judgements is not None else ():
            self._lake.add("qrels", _of_known(judgement, known, part))
        self._judge_lonely(part, known)

    def _number(self, part: Part, query: Item) -> int:
        if self._matcher is None or not part.judged_by_answers:
            return -1
        answers = json.loads(QueryColumns(*query.kept).answers or "[]")  # type: ignore[arg-type]
        self._asked.append((query.id, [self._matcher.answer(answer) for answer in answers]))
        return len(self._asked) - 1

    def _listed_candidates(self, part: Part, known: dict[str, int]) -> Iterator[Candidate | SourceReject]:
        if part.candidates is not None:
            yield from (candidate for candidate in part.candidates() if candidate.query_id in known)
        elif part.name in self._choice.runs:
            yield from run_candidates(
                self._storage, self._choice.runs[part.name], part, known.keys(), self._options.depth
            )

    def _add_candidate(self, candidate: Candidate, known: dict[str, int]) -> None:
        self._lake.add("candidates", candidate)
        if self._matcher is not None or not self._options.all_documents:
            self._waiting.add(candidate.doc_id, known[candidate.query_id])
            self._helped.add(candidate.query_id)

    def _judge_lonely(self, part: Part, known: dict[str, int]) -> None:
        """Have a query without candidates judged on some document, so that it counts as one that found nothing."""
        lonely = [number for query_id, number in known.items() if number >= 0 and query_id not in self._helped]
        for doc_id, _ in itertools.islice(part.pool.index(), 1 if lonely else 0):
            for number in lonely:
                self._waiting.add(doc_id, number)
        self._helped.clear()

    def _judged(self, document: Item, matcher: AnswerMatcher) -> Iterator[Qrel]:
        waiting = self._waiting.of(document.id)
        passage = matcher.passage(document.text or "") if waiting else ""
        for number in waiting:
            query_id, answers = self._asked[number]
            yield Qrel(query_id, document.id, int(matcher.holds(passage, answers)))


def _judged_queries(part: Part) -> set[str]:
    rows = part.judgements() if part.judgements is not None else ()
    return {row.query_id for row in rows if isinstance(row, Qrel)}


def _of_known(judgement: Qrel | SourceReject, known: dict[str, int], part: Part) -> Qrel | SourceReject:
    if isinstance(judgement, SourceReject) or judgement.query_id in known:
        return judgement
    detail = f"{judgement.query_id} is judged, but is not among the queries"
    return SourceReject(part.name, SourceFault.QUERY_NOT_FOUND, detail)
