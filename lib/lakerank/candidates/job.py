"""The first stage as a job: documents and queries in, a table of candidates out."""

from __future__ import annotations

import itertools
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lakerank.candidates.bm25 import statistics
from lakerank.candidates.inputs import (
    ASKED,
    SEARCHED,
    RunList,
    chunk_documents,
    document_chunks,
    read_lists,
    read_queries,
)
from lakerank.candidates.search import KINDS, NAMED_QUERIES, REPORT, ROW_GROUP_ROWS, Options, Search
from lakerank.credentials import redacted
from lakerank.errors import ConfigError, IngestError, StorageError
from lakerank.ingest.rejects import RejectList
from lakerank.lake import has_wildcard, is_local, is_table_part, local_path
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import fragments, parquet_bytes
from lakerank.runner import BATCHES, COUNTS, LocalRunner, Runner, gather, total_of
from lakerank.schemas import CANDIDATES

_PART = re.compile(r"part-\d{6}\.parquet")

#: What documents without text need.
ADVICE = "runs of your own retrieval (--run), or --method all-pairs for a small lake"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Addresses:
    """The tables to read, and the folder of the table to write."""

    documents: str
    queries: str
    output: str


#: Gives a runner for documents with so many bytes of text.
ChooseRunner = Callable[[int], AbstractContextManager[Runner]]


def in_process(_text_bytes: int) -> AbstractContextManager[Runner]:
    """The runner of this process."""
    return nullcontext(LocalRunner())


def find_candidates(
    storage: Storage,
    addresses: Addresses,
    options: Options,
    choose_runner: ChooseRunner = in_process,
    advice: str = ADVICE,
) -> dict[str, Any]:
    """Write the candidates of every query, sorted by query and rank; returns the job's summary.

    `advice` is what messages say to do about documents without text; without one only the summary tells of them.

    The same input gives the same bytes on any runner. An earlier table in the folder is replaced once all files are
    there, and stays when no query has a candidate.

    Raises:
        ConfigError: options contradict each other, or the output folder holds something else.
        IngestError: no query has a candidate.
        SchemaError, StorageError: a table or a run cannot be read.
    """
    started = time.monotonic()
    if faults := [*options.faults(), *_output_faults(storage, addresses)]:
        raise ConfigError(faults)
    documents, queries = fragments(storage, addresses.documents, SEARCHED), fragments(storage, addresses.queries, ASKED)
    work = join(addresses.output, f"_work-{uuid.uuid4().hex[:8]}")
    search = Search(storage, read_queries(storage, queries), document_chunks(storage, documents), options, work)
    rejects = RejectList(storage, addresses.output.rstrip("/").rpartition("/")[0] or ".", "candidates")
    lists = [read_lists(storage, uri, search.queries, options.depth, rejects) for uri in options.runs]
    try:
        if options.method == "all-pairs":
            counts, reports = _all_pairs(search)
        else:
            with choose_runner(sum(chunk.bytes for chunk in search.chunks)) as runner:
                counts, reports = _search(runner, search, lists, rejects)
            if options.method == "bm25" and counts["documents"] * len(search.queries.ids) <= options.fill_pairs:
                reports = _fill(search, _document_ids(search), reports)
        summary = _summary(search, counts, reports)
        rejects.write()  # where ingestion lists its own
        if advice:
            _warn(summary, options, advice)
        if not summary["candidates"]:
            raise IngestError(_nothing_found(addresses.output, advice))
        _publish(search, addresses.output, [row["part"] for row in reports if row["rows"]])
    finally:
        for file in storage.walk(work):
            storage.delete(file.uri)
        storage.remove_empty_folders(addresses.output)
    return {**summary, **rejects.summary(), "output": addresses.output, "seconds": round(time.monotonic() - started, 3)}


def _search(
    runner: Runner, search: Search, lists: Sequence[RunList], rejects: RejectList
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Index, search and merge; returns counts of documents, and the report of each file."""
    doc_ids = sorted({doc_id for of_run in lists for doc_id in of_run.items["doc_id"].to_pylist()})
    search = replace(search, listed=doc_ids, lists=len(lists))
    chunks = range(len(search.chunks))
    runner.describe(f"candidates: index {len(chunks)} chunks of documents")
    counts = runner.summed(runner.scatter(chunks, search.index, COUNTS, _tasks(runner)))
    unknown = {doc_ids[number] for number in set(range(len(doc_ids))) - set(counts.get("listed", {}))}
    _store_lists(search, [of_run.without(unknown, rejects) for of_run in lists])
    documents = {name: total_of(counts, name) for name in ("documents", "searchable", "length")}
    frequencies = np.zeros(len(search.queries.vocabulary), np.int64)
    for number, value in counts.get("term", {}).items():
        frequencies[number] = value
    numbers = statistics(frequencies, documents["searchable"], documents["length"], search.options.k1, search.options.b)
    search = replace(search, listed=(), statistics=numbers)
    runner.describe(f"candidates: search for {len(search.queries.ids)} queries")
    reports = []
    if search.options.method == "bm25" and chunks and search.parts:
        hits = runner.scatter(chunks, search.search, BATCHES, _tasks(runner))
        merged = runner.exchange([hits], len(search.parts), KINDS, search.merge, REPORT)
        reports = runner.collect(merged, REPORT).to_pylist()
    without_hits = sorted(set(search.parts) - {report["part"] for report in reports})
    reports += gather(runner, without_hits, search.merge_lists, REPORT).to_pylist()
    return documents, sorted(reports, key=lambda report: int(report["part"]))


def _tasks(runner: Runner) -> int:
    return 4 * runner.parallelism


def _store_lists(search: Search, lists: Sequence[RunList]) -> None:
    """Write the lists of run files for the tasks, by file of queries."""
    for number, of_run in enumerate(lists):
        edges = np.searchsorted(
            of_run.items["query"].to_numpy(), np.arange(len(search.parts) + 1) * search.queries_per_file
        )
        for part, (first, end) in enumerate(itertools.pairwise(edges)):
            content = parquet_bytes(of_run.items.slice(first, end - first), ROW_GROUP_ROWS)
            search.storage.replace(search.list_file(number, part), content)


def _all_pairs(search: Search) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Every document as a candidate of every query, without scores or ranks."""
    doc_ids = _document_ids(search)
    count = len(doc_ids) * len(search.queries.ids)
    if count > search.options.max_pairs:
        raise ConfigError([
            f"--method all-pairs: {len(search.queries.ids):,} queries × {len(doc_ids):,} documents are {count:,} "
            f"pairs, more than --max-pairs {search.options.max_pairs:,}; raise it, or use --method bm25"
        ])  # fmt: skip
    search = replace(search, options=replace(search.options, depth=max(1, len(doc_ids))))
    return {"documents": len(doc_ids)}, _fill(search, doc_ids, [])


def _fill(search: Search, doc_ids: Sequence[str], reports: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add every other document to each list; returns the report of each file."""
    written = {report["part"] for report in reports if report["rows"]}
    return [row for part in search.parts for row in search.fill(part, doc_ids, part in written).to_pylist()]


def _document_ids(search: Search) -> list[str]:
    documents = (chunk_documents(search.storage, chunk, with_text=False) for chunk in search.chunks)
    return sorted({doc_id for of_chunk in documents for doc_id, _ in of_chunk})


def _summary(search: Search, counts: dict[str, int], reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    options, is_searched = search.options, search.options.method == "bm25"
    return {
        "method": options.method,
        "runs": len(options.runs),
        "depth": None if options.method == "all-pairs" else options.depth,
        "queries": len(search.queries.ids),
        "candidates": sum(report["rows"] for report in reports),
        "queries_without_candidates": sum(report["missing"] for report in reports),
        "such_queries": [name for report in reports for name in json.loads(report["named"])][:NAMED_QUERIES],
        "queries_without_text": search.queries.without_terms,
        "documents": counts["documents"],
        "documents_without_text": counts["documents"] - counts["searchable"] if is_searched else None,
    }


def _warn(summary: dict[str, Any], options: Options, advice: str) -> None:
    """What a search by text could not do, in words."""
    if textless := summary["documents_without_text"]:
        logger.warning(
            "%s of %s documents have no text: BM25 cannot find them; give %s",
            f"{textless:,}", f"{summary['documents']:,}", advice,
        )  # fmt: skip
    if options.method == "bm25" and (imageless := summary["queries_without_text"]):
        logger.warning("%s queries have no text to search for: BM25 finds nothing for them", f"{imageless:,}")
    if missing := summary["queries_without_candidates"]:
        ids = ", ".join(summary["such_queries"]) + (", …" if missing > NAMED_QUERIES else "")
        logger.warning("%s of %s queries have no candidate: %s", f"{missing:,}", f"{summary['queries']:,}", ids)


def _nothing_found(output: str, advice: str) -> str:
    needed = f". Documents without text need {advice}" if advice else ""
    return f"candidates: no query has a candidate; {redacted(output)} is as it was{needed}"


def _output_faults(storage: Storage, addresses: Addresses) -> list[str]:
    """Why the table cannot be written there: it is no folder, or holds what this job did not write."""
    output = addresses.output
    if has_wildcard(output) or output.endswith(".parquet") or (is_local(output) and local_path(output).is_file()):
        return [f"{redacted(output)}: candidates are written to a folder; name one with --output or lake.candidates"]
    if not storage.exists(output):
        return []
    names = [file.uri.removeprefix(output).lstrip("/") for file in storage.walk(output)]
    parts = [name for name in names if is_table_part(name)]
    foreign = [name for name in parts if not _PART.fullmatch(name)]
    if not foreign:
        try:
            foreign = [name for name in parts if not _is_ours(storage, join(output, name))]
        except StorageError:  # a damaged file of an earlier table is replaced
            return []
    what = "files that would be read with the candidates, or are another table"
    return [f"{redacted(output)} has {what} ({foreign[0]}): name an empty folder with --output"] if foreign else []


def _is_ours(storage: Storage, uri: str) -> bool:
    with storage.open_parquet(uri) as parquet:
        return bool(parquet.schema_arrow.names == CANDIDATES.names)


def _publish(search: Search, output: str, parts: Sequence[int]) -> None:
    """Replace the table. One file is replaced in one step; of several, a reader may see old and new meanwhile."""
    storage, names = search.storage, [f"part-{number:06d}.parquet" for number in range(len(parts))]
    for part, name in zip(parts, names, strict=True):
        storage.replace(join(output, name), storage.read_bytes(search.part_file(part)))
    for name in storage.list_names(output):
        if _PART.fullmatch(name) and name not in names:
            storage.delete(join(output, name))
