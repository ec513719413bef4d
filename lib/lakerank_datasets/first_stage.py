"""First stage of a benchmark's parts: candidates from a run file, from BM25, or all documents of a small pool."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, islice
from typing import NamedTuple, cast

import numpy as np

from lakerank.candidates.bm25 import PostingsBuilder, PostingsIndex, split_terms, statistics
from lakerank.candidates.run_files import RunLine, best_items, no_known_query, read_run, run_fields
from lakerank.credentials import redacted
from lakerank.errors import ConfigError, StorageError
from lakerank.ingest.rejects import SourceReject
from lakerank.ingest.tables import ContentRow
from lakerank.lake.storage import Storage
from lakerank.records import Candidate
from lakerank_datasets.layouts.benchmark import Part, QueryColumns
from lakerank_datasets.layouts.mbeir import without_task


class Bm25Index:
    """All texts of a pool, for queries that come later."""

    def __init__(self, texts: Iterable[tuple[str, str]]) -> None:
        """`texts` are document ids and texts."""
        builder = PostingsBuilder()
        for doc_id, text in texts:
            builder.add(doc_id, text)
        self._vocabulary = builder.vocabulary
        postings = builder.finish()
        terms = postings["terms"].combine_chunks().flatten().to_numpy()
        frequencies = np.bincount(terms, minlength=len(self._vocabulary))
        self._index = PostingsIndex(postings, statistics(frequencies, builder.documents, builder.length))

    def search(self, text: str, depth: int) -> list[tuple[str, float]]:
        """Up to `depth` documents that share a term with the text, and their scores, best first."""
        known = [number for term in split_terms(text) if (number := self._vocabulary.get(term)) is not None]
        positions, scores = self._index.search(known, depth)
        return [(self._index.doc_ids[at], score) for at, score in zip(positions, scores.tolist(), strict=True)]


class FirstStage(NamedTuple):
    """A part's source of candidates: `given` by the benchmark, a `run` file, `bm25`, or `all` documents of its pool."""

    method: str
    run: str = ""
    doc_ids: Sequence[str] = ()


def choose_first_stages(parts: Sequence[Part], runs: Sequence[str], all_pairs: int) -> dict[str, FirstStage]:
    """Choose each part's source of candidates, by name. `runs` have the command line's form: `[PART=]FILE`.

    Raises:
        ConfigError: a run belongs to no part, or a part has no first stage; all faults at once.
    """
    assigned = _assigned(parts, runs)
    stages: dict[str, FirstStage] = {}
    faults = []
    for part in parts:
        if part.candidates is not None:
            stages[part.name] = FirstStage("given")
        elif part.name in assigned:
            stages[part.name] = FirstStage("run", assigned[part.name])
        elif part.is_searchable:
            stages[part.name] = FirstStage("bm25")
        else:
            doc_ids = [doc_id for doc_id, _ in islice(part.pool.index(), all_pairs + 1)]
            stages[part.name] = FirstStage("all", doc_ids=doc_ids)
            if len(doc_ids) > all_pairs:
                faults.append(_needs_run(part, all_pairs))
    if faults:
        raise ConfigError(faults)
    return stages


def part_candidates(
    storage: Storage,
    stage: FirstStage,
    part: Part,
    queries: Mapping[str, ContentRow],
    index: Bm25Index | None,
    depth: int,
) -> Iterable[Candidate | SourceReject]:
    """The candidates of a part's queries, up to `depth` from a run or the pool's index; raises as `run_candidates`."""
    depth += part.excludes_itself  # the query itself may be among them
    rows: Iterable[Candidate | SourceReject]
    if stage.method == "given" and part.candidates:
        rows = (candidate for candidate in part.candidates() if candidate.query_id in queries)
    elif stage.method == "run":
        rows = run_candidates(storage, stage.run, part, queries.keys(), depth)
    elif stage.method == "bm25" and index is not None:
        rows = (candidate for query in queries.values() for candidate in _searched(query, index, depth))
    else:
        rows = (Candidate(query_id, doc_id) for query_id in queries for doc_id in stage.doc_ids)
    return without_itself(rows, depth - 1) if part.excludes_itself else rows


def _searched(query: ContentRow, index: Bm25Index, depth: int) -> Iterator[Candidate]:
    """An instruction in front of the query is not searched for: it is for the reranker, and matches everything."""
    prefix = cast("QueryColumns", query.extra).text_prefix or ""
    hits = index.search((query.text or "").removeprefix(prefix).strip(), depth)
    for rank, (doc_id, score) in enumerate(hits, start=1):
        yield Candidate(query.id, doc_id, score, rank)


def without_itself(candidates: Iterable[Candidate | SourceReject], depth: int) -> Iterator[Candidate | SourceReject]:
    """The `depth` best candidates of each query without the document of the query's own id; ranks have no gap."""
    for query_id, group in groupby(candidates, lambda row: getattr(row, "query_id", None)):
        rank = 0
        for row in group:
            if not isinstance(row, Candidate):
                yield row
            elif row.doc_id != query_id and rank < depth:
                rank += 1
                yield row if row.first_stage_rank in (None, rank) else replace(row, first_stage_rank=rank)


def _needs_run(part: Part, all_pairs: int) -> str:
    return (
        f"{part.name}: its pool cannot be searched by text and has more than {all_pairs} documents, too many to rank "
        f"all of them for every query; give a first stage with --run {part.name}=FILE (TREC: query, Q0, document, "
        "rank, score, tag), or raise --all-pairs"
    )


def _assigned(parts: Sequence[Part], runs: Sequence[str]) -> dict[str, str]:
    """The run file of each part that has one."""
    names = {part.name for part in parts}
    files: dict[str, str] = {}
    for run in runs:
        head, _, tail = run.partition("=")
        if head in names:
            targets = {head: tail}
        elif "{part}" in run or "{language}" in run:
            targets = {part.name: _file_of(run, part) for part in parts}
        elif len(names) == 1 or not any(part.prefix for part in parts):
            targets = dict.fromkeys(names, run)
        else:
            fault = (
                f"--run {run}: which part does it belong to? Give PART=FILE, or a FILE with {{part}} or {{language}} "
                f"in its name; the parts are {', '.join(sorted(names))}"
            )
            raise ConfigError([fault])
        if duplicates := sorted(set(targets) & set(files)):
            raise ConfigError([f"--run: {name} has two run files" for name in duplicates])
        files |= targets
    return files


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

    def query_of(line: RunLine | SourceReject) -> str:
        """The query of a line; of one that cannot be read, the query of the line before."""
        nonlocal current
        current = line.query_id.removeprefix(part.prefix) if isinstance(line, RunLine) else current
        return current

    is_mbeir = part.columns.benchmark == "mbeir"
    run = read_run(storage, uri, (lambda text: without_task(run_fields(text), 6)) if is_mbeir else run_fields)
    for query_id, group in groupby(run, query_of):
        lines: list[RunLine] = []
        for line in group:
            if isinstance(line, RunLine):
                lines.append(line)
            else:
                yield line
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
