"""First stage of a benchmark's parts: candidates from a run file, from BM25, or all documents of a small pool."""

from __future__ import annotations

import itertools
import posixpath
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lakerank.candidates.bm25 import Bm25Index
from lakerank.candidates.run_files import RunFault, RunLine, best_items, no_known_query, read_run
from lakerank.credentials import redacted
from lakerank.errors import ConfigError, StorageError
from lakerank.ingest.layouts.benchmark import Benchmark, Part, QueryColumns
from lakerank.ingest.tables import ContentRow, SourceFault, SourceReject
from lakerank.lake.storage import Storage
from lakerank.records import Candidate

#: Candidates of a query that are kept, by default.
DEPTH = 100

#: A pool of at most so many documents may be ranked whole where nothing else gives a first stage.
ALL_PAIRS = 1000


@dataclass(frozen=True, slots=True)
class FirstStages:
    """Each part's source of candidates: `given` by the benchmark, a `run` file, `bm25`, or `all` documents."""

    methods: Mapping[str, str]
    runs: Mapping[str, str]
    small_pools: Mapping[str, Sequence[str]]

    def candidates(self, part: Part, query: ContentRow, index: Bm25Index | None, depth: int) -> Iterator[Candidate]:
        """A query's candidates: the `depth` best of the pool's index, or the whole pool, or none.

        An instruction in front of the query is not searched for: it is for the reranker, and matches everything.
        """
        if index is not None and self.methods[part.name] == "bm25":
            instruction = query.extra.instruction if isinstance(query.extra, QueryColumns) else None
            hits = index.search((query.text or "").removeprefix(instruction or "").strip(), depth)
            for rank, (doc_id, score) in enumerate(hits, start=1):
                yield Candidate(query.id, doc_id, score, rank)
        elif self.methods[part.name] == "all":
            yield from (Candidate(query.id, doc_id) for doc_id in self.small_pools[part.pool.name])


def choose_first_stages(benchmark: Benchmark, runs: Sequence[str], all_pairs: int = ALL_PAIRS) -> FirstStages:
    """Choose each part's source of candidates. `runs` have the command line's form: `[PART=]FILE`.

    Raises:
        ConfigError: a run belongs to no part, or a part has no first stage; all faults at once.
    """
    assigned = _assigned(benchmark, runs)
    methods: dict[str, str] = {}
    small: dict[str, Sequence[str]] = {}
    faults = []
    for part in benchmark.parts:
        if part.candidates is not None:
            methods[part.name] = "given"
        elif part.name in assigned:
            methods[part.name] = "run"
        elif part.pool.is_searchable and part.is_text:
            methods[part.name] = "bm25"
        else:
            if part.pool.name not in small:
                small[part.pool.name] = [doc_id for doc_id, _ in itertools.islice(part.pool.index(), all_pairs + 1)]
            methods[part.name] = "all"
            if len(small[part.pool.name]) > all_pairs:
                faults.append(_needs_run(part, all_pairs))
    if faults:
        raise ConfigError(faults)
    return FirstStages(methods, assigned, small)


def _needs_run(part: Part, all_pairs: int) -> str:
    return (
        f"{part.name}: its pool cannot be searched by text and has more than {all_pairs} documents, too many to rank "
        f"all of them for every query; give a first stage with --run {part.name}=FILE (TREC: query, Q0, document, "
        "rank, score, tag), or raise --all-pairs"
    )


def _assigned(benchmark: Benchmark, runs: Sequence[str]) -> dict[str, str]:
    """The run file of each part that has one."""
    names = {part.name for part in benchmark.parts}
    files: dict[str, str] = {}
    for run in runs:
        head, _, tail = run.partition("=")
        if head in names:
            targets = {head: tail}
        elif "{part}" in run or "{language}" in run:
            targets = {part.name: _file_of(run, part) for part in benchmark.parts}
        elif len(names) == 1 or not any(part.prefix for part in benchmark.parts):
            targets = dict.fromkeys(names, run)
        else:
            raise ConfigError([_ambiguous_run(run, names)])
        if duplicates := sorted(set(targets) & set(files)):
            raise ConfigError([f"--run: {name} has two run files" for name in duplicates])
        files |= targets
    return files


def _ambiguous_run(run: str, names: set[str]) -> str:
    return (
        f"--run {run}: which part does it belong to? Give PART=FILE, or a FILE with {{part}} or {{language}} in its "
        f"name; the parts are {', '.join(sorted(names))}"
    )


def _file_of(template: str, part: Part) -> str:
    language = part.columns.language or ""
    return template.replace("{part}", part.name.replace("/", "-")).replace("{language}", language)


def run_candidates(
    storage: Storage, uri: str, part: Part, query_ids: Collection[str], depth: int
) -> Iterator[Candidate | SourceReject]:
    """The candidates of a part's queries from a run: the `depth` best of each by score, ties in the order of the file.

    Ids may be the publisher's or the lake's. Lines of other queries are skipped. A query's lines must be consecutive,
    so that a run of any length is read in one pass.

    Raises:
        StorageError: there is no such file, a query's lines are apart, or no line is of a query of the part.
    """
    done: set[str] = set()
    current = ""

    def query_of(line: RunLine | RunFault) -> str:
        """The query of a line; of one that cannot be read, the query of the line before."""
        nonlocal current
        current = current if isinstance(line, RunFault) else line.query_id.removeprefix(part.prefix)
        return current

    run = read_run(storage, uri, task_number=part.columns.benchmark == "mbeir")
    for query_id, group in itertools.groupby(run, query_of):
        lines: list[RunLine] = []
        for line in group:
            if isinstance(line, RunFault):
                name, fault = posixpath.basename(uri), SourceFault(line.code)
                yield SourceReject(name, fault, line.detail, line=line.line)
            else:
                lines.append(line)
        if not lines or query_id not in query_ids:
            continue
        if query_id in done:
            raise StorageError(
                f"{redacted(uri)}, line {lines[0].line}: query {lines[0].query_id} again, after others; sort the run "
                "by its first column"
            )
        done.add(query_id)
        for rank, line in enumerate(best_items(lines, depth), start=1):
            yield Candidate(query_id, line.doc_id.removeprefix(part.pool.prefix), line.score, rank)
    if query_ids and not done:
        raise no_known_query(uri, part.name, min(query_ids))
