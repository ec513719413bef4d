"""Explains the heads of a run's lists: which pairs, by which of its rerankers, and the files that the parts go to."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby, islice
from operator import attrgetter
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.compute as pc

from lakerank import schemas
from lakerank.errors import ConfigError, RunConflictError, RunNotFoundError
from lakerank.explain.explainer import Explainer, method_of, unmeasured
from lakerank.fingerprint import content_hash, fingerprint
from lakerank.lake.columns import decode_text
from lakerank.lake.ids import with_types
from lakerank.lake.images.files import ImageFiles, UnreadableImage, address_hash, row_images
from lakerank.lake.ranked import rejected_lists, rows_by_id
from lakerank.lake.runs import RunPaths, published_contents, read_manifest
from lakerank.lake.scores import read_unit
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import fragments, parquet_bytes, read_table_file
from lakerank.model.checkpoint import few
from lakerank.model.registry import CheckpointIdentity
from lakerank.plan.index import instructed_hash, stripped
from lakerank.plan.plan import Tables, load_plan
from lakerank.records import Document, DocumentGroup, Query, Reject
from lakerank.rerank.score import SpecFactory
from lakerank.rerank.stage import Stage
from lakerank.runner import Places, Runner, one_row

#: Documents whose explanations are one file, and rows of its row groups.
_BLOCK, _ROW_GROUP = 64, 65_536

#: Of one file; `reasons`: why pairs of it are not explained.
_REPORT = pa.schema(
    [("explained", pa.int64()), ("faithful", pa.int64()), ("rows", pa.int64()), ("reasons", pa.list_(pa.string()))]
)


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
    """A ranked pair, the number of the stage that scored it, and hashes of what was its document's content then."""

    doc_id: str
    query_id: str
    logit: float
    stage: int
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
    asked, explained = [*_asked(storage, request)], {*_explained(storage, paths)}
    rejected = rejected_lists(storage, paths, request.queries or ())
    unknown = sorted((request.queries or frozenset()) - {pair.query_id for pair in asked} - rejected.keys())
    if unknown and len(unknown) == len(request.queries or ()):
        raise ConfigError([f"--queries: run {paths.run_id!r} has no list of {few(unknown)}; name ids of its queries"])
    pairs = [pair for pair in asked if (pair.doc_id, pair.query_id) not in explained]
    units = published_contents(paths.output, paths.run_id, manifest).units
    by_document = groupby(sorted(_with_contents(storage, request, pairs, units)), attrgetter("doc_id"))
    blocks = []
    while block := [pair for _, of_document in islice(by_document, _BLOCK) for pair in of_document]:
        blocks.append(tuple(block))

    def work(block: Sequence[Pair], device: str) -> Iterator[pa.RecordBatch]:
        yield _explain_block(storage, request, block, device)

    runner.describe(f"explain: {len(pairs)} of {len(asked)} pairs")
    report = runner.on_device(blocks, work, _REPORT, Places(request.stages[0].device, len(blocks)))
    reasons = Counter(reason for of_block in report["reasons"].to_pylist() for reason in of_block)
    for rejects in rejected.values():
        reasons.update(reject.reason.value for reject in rejects)
    counts = {name: sum(report[name].to_pylist()) for name in _REPORT.names[:3]}
    counts = {"pairs": len(asked), "found": len(asked) - len(pairs), **counts}
    counts["not_explained"] = dict(sorted(reasons.items()))
    return {**counts, "unknown_queries": len(unknown), "explanations": paths.explanations}


def _asked(storage: Storage, request: Request) -> Iterator[Pair]:
    """The first pairs of lists. In a run of several stages the last that scored a pair gave its logit."""
    several = len(request.stages) > 1
    names = ["query_id", "doc_id", "rank", "logit", *(["scored_by"] if several else [])]
    schema = schemas.COMBINED if several else schemas.RANKED
    for fragment in fragments(storage, request.paths.ranked, schema):
        for *_, batch in read_table_file(storage, fragment.file, schema, names):
            for row in batch.filter(pc.less_equal(batch["rank"], request.top)).to_pylist():
                if request.queries is None or row["query_id"] in request.queries:
                    yield Pair(row["doc_id"], row["query_id"], row["logit"], max(row.get("scored_by") or [1]) - 1)


def _explained(storage: Storage, paths: RunPaths) -> Iterator[tuple[str, str]]:
    """(doc_id, query_id) of the pairs whose parts are in the lake."""
    for name in storage.list_names(paths.explanations):
        address = join(paths.explanations, name)
        for *_, batch in read_table_file(storage, address, schemas.EXPLANATIONS, ["doc_id", "query_id"]):
            yield from zip(*(batch[column].to_pylist() for column in ("doc_id", "query_id")), strict=True)


def _with_contents(
    storage: Storage, request: Request, pairs: Sequence[Pair], units: Mapping[str, Collection[str]]
) -> Iterator[Pair]:
    """Pairs with their documents' contents: those that the query's present content has the pair's logit with."""
    names = {query.query_id: name for name, query in _queries(storage, request, {pair.query_id for pair in pairs})}
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


def _queries(storage: Storage, request: Request, ids: Collection[str]) -> Iterator[tuple[str, Query]]:
    """Queries, each with the hash of its content."""
    for row in rows_by_id(storage, request.tables.queries, schemas.QUERIES, ids):
        with suppress(UnicodeDecodeError):  # its pairs were rejected
            text, instruction = (decode_text(row[name]) for name in ("text", "instruction"))
            name = instructed_hash(content_hash(row["text"], row["image"]), stripped(row["instruction"]))
            yield name, Query(row["query_id"], text, row["image"], instruction)


def _documents(storage: Storage, request: Request, ids: Collection[str]) -> Iterator[tuple[set[str], Document]]:
    """Documents, each with the hashes that its content may have."""
    files = ImageFiles(storage, request.stages[0].max_image_bytes)
    for row in rows_by_id(storage, request.tables.documents, schemas.DOCUMENTS, ids):
        with suppress(UnicodeDecodeError, UnreadableImage):  # not what was scored
            items = row_images(row)
            images = files.images(items)
            names = {row["content_hash"] or content_hash(row["text"], *images), address_hash(row["text"], items)}
            yield names, Document(row["doc_id"], decode_text(row["text"]), images=images)


def _explain_block(storage: Storage, request: Request, block: Sequence[Pair], device: str) -> pa.RecordBatch:
    """Explain the pairs of some documents and write their file."""
    ids = ({pair.query_id for pair in block}, {pair.doc_id for pair in block})
    queries = {query.query_id: query for _, query in _queries(storage, request, ids[0])}
    documents = {document.doc_id: (names, document) for names, document in _documents(storage, request, ids[1])}
    reasons: list[str] = []
    chosen: dict[tuple[int, CheckpointIdentity], list[Pair]] = defaultdict(list)
    for pair in block:
        names, document = documents.get(pair.doc_id, (set(), Document()))
        query = queries.get(pair.query_id, Query())
        identity = request.identity(pair.stage, bool(document.images or query.images))
        if method_of(identity) is None:
            reasons.append("not_measured")
        elif not names & pair.contents:
            reasons.append("content_changed")
        else:
            chosen[pair.stage, identity].append(pair)
    rows: list[dict[str, Any]] = []
    explained = faithful = 0
    for (stage, identity), pairs in chosen.items():
        explainer = _worker.explainer(request.stages[stage], identity, device)
        groups = [
            DocumentGroup(documents[doc_id][1], tuple(queries[pair.query_id] for pair in of_document))
            for doc_id, of_document in groupby(pairs, attrgetter("doc_id"))
        ]
        for result in explainer.explain(groups, {(pair.query_id, pair.doc_id): pair.logit for pair in pairs}):
            if isinstance(result, Reject):
                reasons.append(result.reason.value)
                continue
            explained, faithful = explained + 1, faithful + result.faithful
            rows += result.rows()
    if rows:
        _write(storage, request.paths, rows)
    return one_row(_REPORT, explained, faithful, len(rows), reasons)


def _write(storage: Storage, paths: RunPaths, rows: Sequence[dict[str, Any]]) -> None:
    plan = load_plan(storage, paths)
    table = pa.Table.from_pylist(rows, schema=schemas.EXPLANATIONS)
    pairs = sorted({(row["doc_id"], row["query_id"], row["method"]) for row in rows})
    content = parquet_bytes(with_types(table, plan.id_types if plan else {}), _ROW_GROUP)
    storage.create(join(paths.explanations, f"{fingerprint({'pairs': pairs})}.parquet"), content)
