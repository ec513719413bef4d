"""Explains the heads of a run's lists: which pairs, by which of its rerankers, and the files that the parts go to."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby, islice
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.compute as pc

from lakerank import schemas
from lakerank.credentials import redacted
from lakerank.errors import ConfigError, RunConflictError, RunNotFoundError, StorageError
from lakerank.explain.explainer import Explainer, Explanation, method_of, unmeasured
from lakerank.fingerprint import content_hash, fingerprint
from lakerank.lake.blobs import NOWHERE, Blob, BlobRef, ChangedFile, fetch
from lakerank.lake.columns import decode_text
from lakerank.lake.ids import with_types
from lakerank.lake.images.files import ImageFiles, UnreadableImage, address_hash
from lakerank.lake.ranked import rejected_lists, row_locations, rows_by_id
from lakerank.lake.runs import RunPaths, published_contents, read_manifest
from lakerank.lake.scores import read_unit
from lakerank.lake.snapshot import TableFile
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import fragments, parquet_bytes, read_table_file
from lakerank.model.checkpoint import few
from lakerank.model.engine.budget import batched
from lakerank.model.registry import CheckpointIdentity
from lakerank.plan.index import instructed_hash, stripped
from lakerank.plan.plan import Tables, load_plan
from lakerank.records import Document, DocumentGroup, Query, Reject
from lakerank.rerank.score import SpecFactory
from lakerank.rerank.stage import Stage
from lakerank.runner import Places, Runner, one_row

#: Pairs that the driver has in memory at once, those whose explanations are one file, and rows of its row groups.
_AT_ONCE, _BLOCK, _ROW_GROUP = 65_536, 256, 65_536

#: Documents that are explained together at most, and their bytes.
_TOGETHER, _TOGETHER_BYTES = 32, 32 * 2**20

#: Of one file; `reasons`: why pairs of it are not explained.
_REPORT = pa.schema(
    [("explained", pa.int64()), ("faithful", pa.int64()), ("rows", pa.int64()), ("reasons", pa.list_(pa.string()))]
)

#: How the files of some rows are read, by URI.
Files = Mapping[str, TableFile]


@dataclass(frozen=True, slots=True)
class Request:
    """What to explain: the first `top` of a run's lists, of all or some queries; `stages` scored the run."""

    paths: RunPaths
    tables: Tables
    stages: Sequence[Stage]
    top: int
    queries: frozenset[str] | None

    def identity(self, stage: int, with_image: bool) -> CheckpointIdentity:
        """The checkpoint that scores pairs in a stage: of two the second is for those with an image."""
        return _identities(self.stages[stage])[-1 if with_image else 0]


def _identities(stage: Stage) -> tuple[CheckpointIdentity, ...]:
    return cast(SpecFactory, stage.factory).scorer.identities


class Pair(NamedTuple):
    """A ranked pair, the number of the stage that scored it, where its rows are, and hashes of what was its document's
    content when it was scored."""

    doc_id: str
    query_id: str
    logit: float
    stage: int
    document: BlobRef = NOWHERE
    query: BlobRef = NOWHERE
    contents: frozenset[str] = frozenset()


class _Worker(threading.local):
    """The explainers of a thread, by checkpoint and device."""

    def __init__(self) -> None:
        self.explainers: dict[tuple[str, str], Explainer] = {}

    def explainer(self, stage: Stage, identity: CheckpointIdentity, device: str) -> Explainer:
        """That of a stage's checkpoint; the first use loads it."""
        key = identity.fingerprint, device
        if key not in self.explainers:
            reranker: Any = stage.factory(device)
            number = _identities(stage).index(identity)
            self.explainers[key] = Explainer(getattr(reranker, "members", (reranker,))[number], identity)
        return self.explainers[key]


_worker = _Worker()


def explain_run(runner: Runner, storage: Storage, request: Request) -> dict[str, Any]:
    """Explain pairs of a published run that are not explained yet. Returns counts.

    Raises:
        ConfigError: explanations of none of the run's rerankers were measured, or no query asked for has a list.
        RunNotFoundError: the run is not published.
        RunConflictError: its scores are another checkpoint's than that which its config names now.
    """
    identities = [identity for stage in request.stages for identity in _identities(stage)]
    if not any(map(method_of, identities)):
        raise unmeasured(identities)
    paths = request.paths
    manifest = read_manifest(storage, paths.output, paths.run_id)
    if manifest is None:
        what = "it is still running, was interrupted, or failed its audit; explain a published run"
        raise RunNotFoundError(f"{paths.manifest}: not there, so run {paths.run_id!r} is not published: {what}")
    units, asked = published_contents(paths.output, paths.run_id, manifest).units, _asked(storage, request)
    rejected = rejected_lists(storage, paths, request.queries or ())
    unknown = {*(request.queries or ())} - rejected.keys()
    reasons = Counter(reject.reason.value for rejects in rejected.values() for reject in rejects)
    counts: Counter[str] = Counter()
    explained = {*_explained(storage, paths)}
    while pairs := [*islice(asked, _AT_ONCE)]:
        unknown.difference_update(pair.query_id for pair in pairs)
        new = {pair[:2]: pair for pair in pairs if pair[:2] not in explained}
        runner.describe(f"explain: {len(new)} of {len(pairs)} pairs")
        report = _explain(runner, storage, request, [*new.values()], units)
        reasons.update(reason for of_block in report["reasons"].to_pylist() for reason in of_block)
        counts.update({name: sum(report[name].to_pylist()) for name in _REPORT.names[:3]})
        counts.update(pairs=len(pairs), found=len(pairs) - len(new))
    if unknown and len(unknown) == len(request.queries or ()):
        known = few(sorted(unknown))
        raise ConfigError([f"--queries: run {paths.run_id!r} has no list of {known}; name ids of its queries"])
    summary = {name: counts[name] for name in ("pairs", "found", *_REPORT.names[:3])}
    told = {"not_explained": dict(sorted(reasons.items())), "unknown_queries": len(unknown)}
    return {**summary, **told, "explanations": paths.explanations}


def _explain(
    runner: Runner, storage: Storage, request: Request, pairs: Sequence[Pair], units: Mapping[str, Collection[str]]
) -> pa.Table:
    """Explain pairs, those of a document together, documents in the order of their table. Returns rows of _REPORT."""
    ids = ({pair.doc_id for pair in pairs}, {pair.query_id for pair in pairs})
    documents, files = row_locations(storage, request.tables.documents, schemas.DOCUMENTS, ids[0])
    queries, of_queries = row_locations(storage, request.tables.queries, schemas.QUERIES, ids[1])
    files |= of_queries
    placed = [pair._replace(document=documents[pair.doc_id], query=queries[pair.query_id]) for pair in pairs]
    located = sorted(_with_contents(storage, request, placed, units, files), key=attrgetter("document"))
    blocks = [tuple(located[first : first + _BLOCK]) for first in range(0, len(located), _BLOCK)]

    def work(block: Sequence[Pair], device: str) -> Iterator[pa.RecordBatch]:
        yield _explain_block(storage, request, block, files, device)

    return runner.on_device(blocks, work, _REPORT, Places(request.stages[0].device, len(blocks)))


def _asked(storage: Storage, request: Request) -> Iterator[Pair]:
    """The first pairs of lists. In a run of several stages the last that scored a pair gave its logit."""
    several = len(request.stages) > 1
    names = ["query_id", "doc_id", "rank", "logit", *(["scored_by"] if several else [])]
    schema = schemas.COMBINED if several else schemas.RANKED
    rows: Iterator[dict[str, Any]]
    if request.queries is None:
        files = (fragment.file for fragment in fragments(storage, request.paths.ranked, schema))
        batches = (batch for file in files for *_, batch in read_table_file(storage, file, schema, names))
        rows = (row for b in batches for row in b.filter(pc.less_equal(b["rank"], request.top)).to_pylist())
    else:
        rows = rows_by_id(storage, request.paths.ranked, schema, request.queries, names[1:])
    for row in rows:
        if row["rank"] <= request.top:
            yield Pair(row["doc_id"], row["query_id"], row["logit"], max(row.get("scored_by") or [1]) - 1)


def _explained(storage: Storage, paths: RunPaths) -> Iterator[tuple[str, str]]:
    """(doc_id, query_id) of the pairs whose parts are in the lake."""
    ids = ["doc_id", "query_id"]
    for name in storage.list_names(paths.explanations):
        for *_, batch in read_table_file(storage, join(paths.explanations, name), schemas.EXPLANATIONS, ids):
            distinct = pa.Table.from_batches([batch]).group_by(ids).aggregate([]).select(ids)
            yield from zip(*(column.to_pylist() for column in distinct.columns), strict=True)


def _with_contents(
    storage: Storage, request: Request, pairs: Sequence[Pair], units: Mapping[str, Collection[str]], files: Files
) -> Iterator[Pair]:
    """Pairs with their documents' contents: those that the query's present content has the pair's logit with."""
    names = {query.query_id: name for name, query in _queries(storage, pairs, files)}
    for number, stage in enumerate(request.stages):
        if stage.scorer not in units:
            raise RunConflictError(
                f"{request.paths.manifest}: names no scorer {stage.scorer}: the checkpoint in the run's config "
                "is another now; put the old one there, or explain a new run"
            )
        of_stage = [pair for pair in pairs if pair.stage == number]
        wanted = {(names.get(pair.query_id), pair.logit) for pair in of_stage}
        hashes = pa.array({name for name, _ in wanted}, pa.string())
        contents: dict[tuple[str | None, float], set[str]] = defaultdict(set)
        for unit in units[stage.scorer] if wanted else ():
            rows = read_unit(storage, request.paths.output, stage.scorer, unit)
            rows = rows.filter(pc.is_in(rows["query_hash"], hashes)).select(["query_hash", "logit", "doc_hash"])
            for name, logit, doc_hash in zip(*(column.to_pylist() for column in rows.columns), strict=True):
                if (name, logit) in wanted:
                    contents[name, logit].add(doc_hash)
        for pair in of_stage:
            yield pair._replace(contents=frozenset(contents[names.get(pair.query_id), pair.logit]))


def _rows(storage: Storage, refs: Collection[BlobRef], id_column: str, files: Files) -> Iterator[Blob]:
    """Rows in the order of their table, but those gone; raises StorageError: a file was replaced meanwhile."""
    try:
        yield from fetch(storage, sorted({*refs} - {NOWHERE}), id_column, files=files)
    except ChangedFile as error:
        raise StorageError(f"{redacted(error.file)}: replaced while explained; run explain again") from error


def _queries(storage: Storage, pairs: Sequence[Pair], files: Files) -> Iterator[tuple[str, Query]]:
    """The queries of pairs, each with the hash of its content."""
    for blob in _rows(storage, {pair.query for pair in pairs}, "query_id", files):
        with suppress(UnicodeDecodeError):  # its pairs were rejected
            text, instruction = decode_text(blob.text), decode_text(blob.instruction)
            name = instructed_hash(content_hash(blob.text, blob.image), stripped(blob.instruction))
            yield name, Query(blob.id, text, blob.image, instruction)


def _documents(
    storage: Storage, images: ImageFiles, pairs: Sequence[Pair], files: Files
) -> Iterator[tuple[tuple[Document, list[Pair]], int]]:
    """The documents of pairs, each with those that its content, and their queries', was scored for, and its bytes."""
    for blob in _rows(storage, {pair.document for pair in pairs}, "doc_id", files):
        with suppress(UnicodeDecodeError, UnreadableImage):  # not what was scored
            read = images.images(blob.images)
            names = {blob.content_hash or content_hash(blob.text, *read), address_hash(blob.text, blob.images)}
            scored = [pair for pair in pairs if pair.doc_id == blob.id and names & pair.contents]
            document = Document(blob.id, decode_text(blob.text), images=read)
            yield (document, scored), sum(map(len, (blob.text or b"", *read)))


def _explain_block(
    storage: Storage, request: Request, block: Sequence[Pair], files: Files, device: str
) -> pa.RecordBatch:
    """Explain some pairs and write their file."""
    queries = {query.query_id: query for _, query in _queries(storage, block, files)}
    images = ImageFiles(storage, request.stages[0].max_image_bytes)
    explained, faithful, changed, tables = 0, 0, len(block), [schemas.EXPLANATIONS.empty_table()]
    reasons: list[str] = []
    for part in batched(_documents(storage, images, block, files), lambda: _TOGETHER_BYTES, _TOGETHER):
        rows: list[dict[str, Any]] = []
        for result in _explain_together(request, part, queries, device):
            changed -= 1
            if isinstance(result, str):
                reasons.append(result)
                continue
            explained, faithful = explained + 1, faithful + result.faithful
            rows += result.rows()
        tables.append(pa.Table.from_pylist(rows, schema=schemas.EXPLANATIONS))
    table = pa.concat_tables(tables)
    if table.num_rows:
        _write(storage, request.paths, table)
    return one_row(_REPORT, explained, faithful, table.num_rows, [*reasons, *["content_changed"] * changed])


def _explain_together(
    request: Request, part: Sequence[tuple[Document, list[Pair]]], queries: Mapping[str, Query], device: str
) -> Iterator[Explanation | str]:
    """The explanations of some documents' pairs, or why one has none."""
    chosen: dict[tuple[int, CheckpointIdentity], list[tuple[Document, Pair]]] = defaultdict(list)
    for document, pair in ((document, pair) for document, pairs in part for pair in pairs):
        identity = request.identity(pair.stage, bool(document.images or queries[pair.query_id].images))
        if method_of(identity) is None:
            yield "not_measured"
        else:
            chosen[pair.stage, identity].append((document, pair))
    for (stage, identity), of_stage in chosen.items():
        groups = [
            DocumentGroup(document, tuple(queries[pair.query_id] for _, pair in of_document))
            for document, of_document in groupby(of_stage, itemgetter(0))
        ]
        logits = {(pair.query_id, pair.doc_id): pair.logit for _, pair in of_stage}
        for result in _worker.explainer(request.stages[stage], identity, device).explain(groups, logits):
            yield result.reason.value if isinstance(result, Reject) else result


def _write(storage: Storage, paths: RunPaths, table: pa.Table) -> None:
    plan = load_plan(storage, paths)
    pairs = sorted({*zip(*(table[name].to_pylist() for name in ("doc_id", "query_id", "method")), strict=True)})
    content = parquet_bytes(with_types(table, plan.id_types if plan else {}), _ROW_GROUP)
    storage.create(join(paths.explanations, f"{fingerprint({'pairs': pairs})}.parquet"), content)
