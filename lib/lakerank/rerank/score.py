"""Scores the work units of a plan: one task a unit, one model a process, one immutable file of scores a unit."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple, cast
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc

from lakerank.fingerprint import content_hash
from lakerank.lake.blobs import Blob, BlobRef, ChangedFile, RowGroupCache, check_unchanged, fetch, prefetched
from lakerank.lake.columns import decode_text
from lakerank.lake.images.files import ImageFiles, UnreadableImage, address_hash, read_ahead
from lakerank.lake.scores import CorruptScoreFile, PlannedUnits, finished_units, read_unit, unit_address, write_unit
from lakerank.lake.snapshot import TableFile
from lakerank.lake.states import UnitStates, states_folder
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import read_table_file
from lakerank.limits import Limits
from lakerank.logs import duration, in_worker, log_context, rate
from lakerank.model.inputs import RejectedInput
from lakerank.model.preprocess.pipeline import TOKENS_AHEAD, BoundedCache, expected_size
from lakerank.model.registry import LoadedReranker, LoadedScorer
from lakerank.model.routed import ModelSpec
from lakerank.model.spec import RuntimeOptions, ScorerIdentity
from lakerank.plan.plan import read_sources
from lakerank.plan.units import UNIT_GROUPS, PlannedGroup, planned_groups
from lakerank.records import (
    CandidateList,
    Document,
    DocumentGroup,
    DocumentState,
    ListReranker,
    Query,
    Reject,
    RejectReason,
    ScoredPair,
)
from lakerank.rerank.attempts import Watch, attempt
from lakerank.rerank.progress import UnitProgress, watch_units
from lakerank.runner import NO_DEADLINE, Deadline, Places, Runner, one_row
from lakerank.schemas import SCORES

logger = logging.getLogger(__name__)

#: A scoring task's report. Counts that matter are read from the unit files; these are for the summary. `load_id` is
#: null where the unit had its scores already; `gpu` is the model of the GPU, if one scored it.
UNIT_REPORT = pa.schema([
    ("unit", pa.string()), ("pairs", pa.int64()), ("load_id", pa.string()), ("gpu", pa.string()),
    ("seconds", pa.float64()),
    ("tokens_computed", pa.int64()), ("tokens_pairwise", pa.int64()),
    ("documents_read", pa.int64()),
])  # fmt: skip

#: Bytes of the queries' row groups that a worker keeps between units.
QUERY_CACHE_BYTES = 256 * 2**20

#: Fewer pairs are not worth the time to load another model.
PAIRS_A_MODEL = 32

#: Lists prefetched for the device; of groups as many as it scores together, by their tokens, or those of so many bytes.
LISTS_AHEAD, BYTES_AHEAD = 2, 128 * 2**20

#: Files of `documents` and `queries` by URI.
Sources = Mapping[str, Mapping[str, TableFile]]

#: Makes a reranker on a device, inside the worker: it crosses to the worker, the weights never do.
RerankerFactory = Callable[[str], LoadedScorer]

Results = Iterator[ScoredPair | Reject]


@dataclass(frozen=True, slots=True)
class SpecFactory:
    """A RerankerFactory that loads what a model spec names."""

    spec: ModelSpec
    limits: Limits
    options: RuntimeOptions
    scorer: ScorerIdentity

    def __call__(self, device: str) -> LoadedScorer:
        """Load onto a torch device.

        Without `device_threads` a task on a CPU has the threads that Spark gives it in the environment, or one:
        the bits of a score depend on their number.
        """
        threads = self.options.device_threads or int(os.environ.get("OMP_NUM_THREADS", "1").partition(",")[0] or 1)
        return self.spec.load(device, self.limits, replace(self.options, device_threads=threads), self.scorer)


@dataclass(frozen=True, slots=True)
class ScoringJob:
    """Where units are read and scores written, with which reranker, and by when; `progress` counts a unit's pairs.

    `encoder`: whose states of documents are kept; None: none are.
    """

    output: str
    scorer: str
    units_folder: str
    sources: str
    device: str
    factory: RerankerFactory
    deadline: Deadline = NO_DEADLINE
    progress: UnitProgress | None = None
    max_image_bytes: int = Limits().max_source_bytes
    encoder: str | None = None


@dataclass(frozen=True, slots=True)
class ScoringSummary:
    """The figures of one attempt at scoring. `existing` units had their scores; only `units` counts them too.

    `seconds` is wall time; token counts show how much work document-major scoring saved. `documents_read`: groups whose
    document was, for its state was not kept.
    """

    units: int
    existing: int
    pairs: int
    model_loads: int
    seconds: float
    device_seconds: float
    tokens_computed: int
    tokens_pairwise: int
    documents_read: int
    gpus: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The figures by the names of the job's summary and the manifest."""
        figures = {"found" if name == "existing" else name: value for name, value in asdict(self).items()}
        return {name: value for name, value in figures.items() if name != "gpus"}

    def log(self, lists: int | None) -> None:
        """A line or two for the log; `lists`: how many of a stage that scores lists, whose documents share tokens."""
        what = "pairs" if lists is None else "documents"
        scored = what if lists is None or self.existing else f"documents of {lists} lists"
        logger.info(
            "score: %d %s in %d units (%d scored before) in %s, %s, %d model loads",
            *(self.pairs, scored, self.units, self.existing, duration(self.seconds)),
            *(rate(self.pairs, self.seconds, what), self.model_loads),
        )
        if self.tokens_computed and lists is not None:
            logger.info("score: the model read %d tokens", self.tokens_computed)
        elif self.tokens_computed:
            logger.info(
                "score: the model read %d tokens; pair by pair, without padding, it would have read %d (%.1fx)",
                *(self.tokens_computed, self.tokens_pairwise, self.tokens_pairwise / self.tokens_computed),
            )


#: One thread loads at a time: libraries that read checkpoints change settings of the process meanwhile.
_loading = threading.Lock()


class _Worker(threading.local):
    """What a thread that scores caches between tasks: its model, by scorer and device. Row groups are the process's."""

    queries = BoundedCache[pa.Table](QUERY_CACHE_BYTES, lambda group: group.nbytes)
    documents = BoundedCache[pa.Table](QUERY_CACHE_BYTES, lambda group: group.nbytes)  # of lists: one comes in many

    def __init__(self) -> None:
        self.rerankers: dict[tuple[str, str], tuple[LoadedScorer, str]] = {}
        self.sources: dict[str, dict[str, dict[str, TableFile]]] = {}

    def reranker(self, job: ScoringJob) -> tuple[LoadedScorer, str]:
        """The reranker for this job on its device, loaded by the first task, and what names this loading of it."""
        key = (job.scorer, job.device)
        if key not in self.rerankers:
            if self.rerankers:
                from lakerank.model.engine.device import release_memory

                self.rerankers.clear()  # another scorer's weights would hold the device's memory
                release_memory()
            with _loading:
                self.rerankers[key] = job.factory(job.device), uuid4().hex
        return self.rerankers[key]

    def files(self, storage: Storage, job: ScoringJob) -> Sources:
        """The files of documents and queries that the plan was made from, read by the first task."""
        if job.sources not in self.sources:
            self.sources = {job.sources: read_sources(storage, job.sources)}
        return self.sources[job.sources]


_worker = _Worker()


def score_units(runner: Runner, storage: Storage, job: ScoringJob, units: PlannedUnits) -> ScoringSummary:
    """Score every unit whose file is not in the lake yet."""
    started = time.monotonic()
    existing = len(finished_units(storage, job.output, job.scorer).intersection(units))
    runner.describe(f"score: {len(units) - existing} of {len(units)} units")
    context = log_context()

    with watch_units(storage, job.output, job.scorer, units) as progress:

        def work(unit: str, device: str) -> Iterator[pa.RecordBatch]:
            exists = storage.exists(unit_address(job.output, job.scorer, unit))
            with in_worker(context, unit=unit):
                of_task = replace(job, device=device, progress=progress)
                yield score_unit(storage, of_task, unit, may_exist=exists)

        pairs = pc.sum(units.table()["pairs"]).as_py() or 0
        places = Places(job.device, pairs // PAIRS_A_MODEL, job.deadline)
        reports = runner.on_device(units, work, UNIT_REPORT, places)
    scored = reports.filter(pc.is_valid(reports["load_id"]))
    return ScoringSummary(
        units=len(units),
        existing=len(units) - scored.num_rows,
        pairs=sum(scored["pairs"].to_pylist()),
        model_loads=len(pc.unique(scored["load_id"])),
        seconds=time.monotonic() - started,
        device_seconds=sum(reports["seconds"].to_pylist()),
        gpus=tuple(pc.unique(scored["gpu"].drop_null()).to_pylist()),
        **{name: sum(reports[name].to_pylist()) for name in UNIT_REPORT.names[5:]},
    )


def score_unit(storage: Storage, job: ScoringJob, unit: str, may_exist: bool) -> pa.RecordBatch:
    """Score one unit and write its file, unless a whole one exists. Returns one row of UNIT_REPORT."""
    if may_exist:
        try:
            rows = read_unit(storage, job.output, job.scorer, unit)
            return one_row(UNIT_REPORT, unit, rows.num_rows, None, None, 0.0, 0, 0, 0)
        except CorruptScoreFile as error:
            logger.warning("%s: deleted, to be scored again", error)
            storage.delete(unit_address(job.output, job.scorer, unit))
    reranker, load_id = _worker.reranker(job)
    started = time.monotonic()
    before = (reranker.counters.computed, reranker.counters.pairwise)
    address = join(job.units_folder, f"{unit}.parquet")
    plan = planned_groups(pa.Table.from_batches(b for *_, b in read_table_file(storage, address, UNIT_GROUPS)))
    hashes = {(query.query_id, g.doc_id): (query.query_hash, g.doc_hash) for g in plan for query in g.queries}
    files = _worker.files(storage, job)
    rejects: list[Reject] = []
    check, states = partial(_check_sources, storage, plan, files), None
    if job.encoder is not None:
        folder = states_folder(job.output, job.encoder)
        states = UnitStates(storage, folder, unit, getattr(reranker, "state_dtype", ""), check)
    with attempt(storage, job.units_folder, unit) as watch:
        listwise = isinstance(reranker, ListReranker)
        contents = _Contents(storage, files, job.max_image_bytes, states, _worker.documents if listwise else None)
        groups = _groups(contents, plan, rejects)
        if isinstance(reranker, ListReranker):
            scored = _scored_lists(reranker, prefetched(candidate_lists(groups), (LISTS_AHEAD,)), watch)
        else:
            most = getattr(reranker, "tokens_ahead", TOKENS_AHEAD), BYTES_AHEAD
            scored = cast(LoadedReranker, reranker).score_groups(prefetched(groups, most, expected_size))
        results = [*(scored if job.progress is None else job.progress.counted(unit, scored))]
        check()
        if states is not None:
            states.write(least_bytes=1)
        rows = score_rows([*results, *rejects], hashes)
        write_unit(storage, job.output, job.scorer, unit, rows)
    computed, pairwise = reranker.counters.computed - before[0], reranker.counters.pairwise - before[1]
    seconds = time.monotonic() - started
    level = logging.INFO if log_context().form == "json" else logging.DEBUG  # for people there is the progress
    logger.log(level, "scored %d pairs of %d documents in %.1f s", rows.num_rows, len(plan), seconds)
    read = len(plan) - (states.reused if states else 0)
    gpu = getattr(reranker, "gpu", None)
    return one_row(UNIT_REPORT, unit, rows.num_rows, load_id, gpu, seconds, computed, pairwise, read)


def candidate_lists(groups: Iterable[DocumentGroup]) -> Iterator[CandidateList]:
    """Lists from their pairs in order, groups of one query each."""
    for _, pairs in groupby(groups, key=lambda group: group.queries[0].query_id):
        (query, *_), documents = zip(*((pair.queries[0], pair.document) for pair in pairs), strict=True)
        yield CandidateList(query, documents)


def read_lists(storage: Storage, sources: str, image_bytes: int, plan: Sequence[PlannedGroup]) -> list[CandidateList]:
    """The lists of some pairs in order, without what cannot be read."""
    contents = _Contents(storage, read_sources(storage, sources), image_bytes, None, _worker.documents)
    lists = [*candidate_lists(_groups(contents, plan, []))]
    _check_sources(storage, plan, contents.files)
    return lists


def _scored_lists(reranker: ListReranker, lists: Iterable[CandidateList], watch: Watch | None) -> Results:
    """The results of lists; after an attempt that was killed one after the other, each named meanwhile."""
    if watch is None:
        yield from reranker.score_lists(lists)
        return
    for of_query in lists:
        query_id = of_query.query.query_id
        try:
            with watch.scoring(query_id):
                results = [*reranker.score_lists([of_query])]
        except RejectedInput as fault:
            results = [Reject(query_id, document.doc_id, fault.reason, fault.detail) for document in of_query.documents]
        yield from results


def score_rows(results: Sequence[ScoredPair | Reject], hashes: dict[tuple[str, str], tuple[str, str]]) -> pa.Table:
    """A unit's results as SCORES; a pair that has no result, or two, is a fault of the reranker and stops the job.

    Raises:
        RuntimeError: the results are not exactly the unit's pairs.
    """
    pairs = {(result.query_id, result.doc_id) for result in results}
    if len(results) != len(hashes) or pairs != hashes.keys():
        raise RuntimeError(f"the reranker gave {len(results)} results for {len(pairs)} of {len(hashes)} pairs")
    columns = {name: [getattr(result, name, None) for result in results] for name in SCORES.names}
    keys = [hashes[result.query_id, result.doc_id] for result in results]
    columns |= {"query_hash": [key[0] for key in keys], "doc_hash": [key[1] for key in keys]}
    return pa.Table.from_pydict(columns, schema=SCORES)


def _check_sources(storage: Storage, plan: Sequence[PlannedGroup], files: Sources) -> None:
    """Before scores are written: the rows fetched for them must be of the versions that were planned."""
    refs = [group.location for group in plan] + [query.location for group in plan for query in group.queries]
    try:
        check_unchanged(storage, {**files["documents"], **files["queries"]}, {ref.file for ref in refs})
    except ChangedFile:
        for cache in (_worker.queries, _worker.documents):
            cache.clear()  # a retry of the task must not find another version's rows
        raise


class _Contents(NamedTuple):
    """Where a unit's documents and queries are read. `cache`: for documents that come again, as in lists."""

    storage: Storage
    files: Sources
    max_image_bytes: int
    states: UnitStates | None
    cache: RowGroupCache | None


def _groups(contents: _Contents, plan: Sequence[PlannedGroup], rejects: list[Reject]) -> Iterator[DocumentGroup]:
    """Fetch each group's document and queries by reference. Text that is not UTF-8 becomes rejects, not a group, and so
    does an image whose address gives none."""
    storage, queries_of, documents = contents.storage, contents.files["queries"], _documents(contents, plan)
    images, cached = ImageFiles(storage, contents.max_image_bytes), _cached_queries(storage, plan, queries_of)
    for (group, blob, state), content in read_ahead(
        documents, lambda fetched: fetched[1].has_address, partial(_images, images)
    ):
        _check_id(group.location, group.doc_id, blob)
        if isinstance(content, UnreadableImage):
            fault = (content.reason, content.detail)
            rejects += [Reject(query.query_id, group.doc_id, *fault) for query in group.queries]
            continue
        uncached = [query.location for query in group.queries if query.location not in cached]
        fetched = fetch(storage, uncached, "query_id", _worker.queries, queries_of)
        queries = []
        for planned in group.queries:
            query_blob = cached[planned.location] if planned.location in cached else next(fetched)
            _check_id(planned.location, planned.query_id, query_blob)
            text_fault = _text_fault(blob, "document") or _text_fault(query_blob, "query")
            if text_fault:
                rejects.append(Reject(planned.query_id, group.doc_id, RejectReason.TEXT_UNDECODABLE, text_fault))
            else:
                texts = [decode_text(raw) for raw in (query_blob.text, query_blob.instruction)]
                queries.append(Query(planned.query_id, texts[0], query_blob.image, texts[1]))
        if queries:
            yield DocumentGroup(Document(group.doc_id, decode_text(blob.text), images=content), tuple(queries), state)


#: A group, its document, and that one's state.
_Fetched = tuple[PlannedGroup, Blob, DocumentState | None]


def _documents(contents: _Contents, plan: Sequence[PlannedGroup]) -> Iterator[_Fetched]:
    """The document of each group. One whose state is known is not fetched, and has no content."""
    storage, files, states = contents.storage, contents.files["documents"], contents.states
    unknown = [group.location for group in plan if states is None or group.state is None]
    blobs = fetch(storage, unknown, "doc_id", contents.cache, files)
    for group in plan:
        if states is None:
            yield group, next(blobs), None
            continue
        states.write()
        state = states.of(group.doc_hash, group.state)
        if state.encoded:
            yield group, Blob(group.doc_id, None), state
        else:
            lost = fetch(storage, [group.location], "doc_id", files=files)
            yield group, next(blobs if group.state is None else lost), state


def _images(files: ImageFiles, planned: _Fetched) -> tuple[bytes, ...] | UnreadableImage:
    """A document's images, those at addresses read; or why one cannot be, or is not what the run was planned with."""
    group, blob, _ = planned
    try:
        images = files.images(blob.images)
    except UnreadableImage as fault:
        return fault
    names = (blob.content_hash or content_hash(blob.text, *images), address_hash(blob.text, blob.images))
    if blob.has_address and group.doc_hash not in names:
        return UnreadableImage(RejectReason.IMAGE_UNREACHABLE, "the image has changed since its document was indexed")
    return images


def _check_id(ref: BlobRef, expected: str, blob: Blob) -> None:
    if blob.id != expected:
        raise ChangedFile(ref.file, "another row is where the run was planned to find one")


def _cached_queries(
    storage: Storage, plan: Sequence[PlannedGroup], files: Mapping[str, TableFile]
) -> dict[BlobRef, Blob]:
    """The unit's queries, read once in file order, up to QUERY_CACHE_BYTES: most are of many documents' groups."""
    refs = sorted({query.location for group in plan for query in group.queries}, key=astuple)
    cached: dict[BlobRef, Blob] = {}
    free = QUERY_CACHE_BYTES
    for ref, blob in zip(refs, fetch(storage, refs, "query_id", _worker.queries, files), strict=True):
        free -= blob.nbytes
        if free < 0:
            break
        cached[ref] = blob
    return cached


def _text_fault(blob: Blob, side: str) -> str | None:
    for name, raw in (("text", blob.text), ("instruction", blob.instruction)):
        try:
            decode_text(raw)
        except UnicodeDecodeError as error:
            return f"{side} {name} is not UTF-8 at byte {error.start}"
    return None
