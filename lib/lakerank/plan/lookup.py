"""What earlier runs left in the lake: stored scores, by content, and the candidates of the last published run.

A unit file is read once for planning: its scores are then in an index file with those of other units, sorted by
document content. Index files are only ever added, named by the units they cover: they need no locks and no pointer.
Candidates that this run no longer lists are dropped candidates; they are counted part by part.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lakerank.errors import StorageError
from lakerank.fingerprint import sequence_hash
from lakerank.lake.publication import run_before
from lakerank.lake.runs import RunPaths
from lakerank.lake.scores import CorruptScoreFile, finished_units, read_unit
from lakerank.lake.states import STATE_REFS
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import parquet_bytes
from lakerank.plan.index import QueryList, query_list
from lakerank.plan.pairs import PAIRS, REJECTS, ValidatedPairs, flat, hash_parts
from lakerank.plan.plan import ROW_GROUP_ROWS, load_plan, part_name, plan_folder, read_part, with_columns
from lakerank.records import TRANSIENT_REASONS

logger = logging.getLogger(__name__)

#: A stored score, or the reason why there is none, and the unit it is in.
RESULT = [("logit", pa.float32()), ("truncated", pa.bool_())]
RESULT += [("reason", pa.string()), ("detail", pa.string()), ("unit", pa.string())]

#: A score in an index file, keyed by the contents it is the score of.
INDEXED_SCORES = pa.schema([("doc_hash", pa.string()), ("query_hash", pa.string()), *RESULT])

#: A score on its way to the documents of that content: the query by the number of the first of its content.
CONTENT_SCORES = pa.schema([("doc_hash", pa.string()), ("query", pa.int32()), *RESULT])

#: A document by its number, and its content.
DOCUMENT_CONTENTS = pa.schema([("doc_hash", pa.string()), ("document", pa.int64())])

#: A score of a document by its number.
DOCUMENT_SCORES = pa.schema([("document", pa.int64()), ("query", pa.int32()), *RESULT])

#: A state of a document by its number.
DOCUMENT_STATES = pa.schema([("document", pa.int64()), *list(STATE_REFS)[1:]])

#: Unit files that one index file covers.
UNITS_A_FILE = 256

_UNITS_KEY = b"lakerank.units"
_CANDIDATE = ["query_id", "doc_id"]

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ScoreIndex:
    """The score index files of one scorer, and units that they cover but that are no longer in the lake."""

    storage: Storage
    output: str
    scorer: str
    names: tuple[str, ...] = ()
    gone: frozenset[str] = frozenset()

    @property
    def folder(self) -> str:
        """Where the index files are."""
        return join(self.output, "index", "scores", f"scorer={self.scorer}")

    def listed(self) -> tuple[ScoreIndex, list[list[str]]]:
        """The index with the files there are, and units that they do not cover, UNITS_A_FILE together."""
        units, names = finished_units(self.storage, self.output, self.scorer), self.storage.list_names(self.folder)
        covered: set[str] = set()
        for name in names:
            with self.storage.open_parquet(join(self.folder, name)) as parquet:
                listed = (parquet.schema_arrow.metadata or {}).get(_UNITS_KEY, b"")
            covered |= {*listed.decode().split(",")} - {""}
        missing = sorted(units - covered)
        index = replace(self, names=tuple(sorted(names)), gone=frozenset(covered - units))
        return index, [missing[first : first + UNITS_A_FILE] for first in range(0, len(missing), UNITS_A_FILE)]

    def stored(self, name: str) -> pa.Table:
        """The scores of an index file that are still in the lake."""
        rows = read_part(self.storage, join(self.folder, name), INDEXED_SCORES)
        if self.gone:
            rows = rows.filter(pc.invert(pc.is_in(rows["unit"], value_set=pa.array(sorted(self.gone)))))
        return rows

    def read(self, name: str, queries: QueryList) -> pa.Table:
        """The scores of an index file for contents that some query has, as CONTENT_SCORES."""
        rows = self.stored(name)
        coded = rows["query_hash"].combine_chunks().dictionary_encode()
        known = pc.index_in(coded.dictionary, value_set=queries.column("hash")).fill_null(-1).to_numpy()
        numbers = known[coded.indices.to_numpy()]
        scores = with_columns(rows, CONTENT_SCORES, query=pa.array(numbers.astype(np.int32)))
        return scores.filter(pa.array(numbers >= 0))

    def write(self, units: Sequence[str]) -> str | None:
        """Index the scores of some units; returns the index file's name, or None when all unit files are corrupt."""
        tables, names = [], []
        for unit in units:
            try:
                rows = read_unit(self.storage, self.output, self.scorer, unit)
            except CorruptScoreFile as error:
                logger.warning("%s: its pairs are scored again", error)
                continue
            names.append(unit)
            truncated = pc.or_kleene(rows["query_truncated"], rows["document_truncated"])
            unit_column = pa.array([unit] * rows.num_rows, pa.string())
            tables.append(with_columns(rows, INDEXED_SCORES, truncated=truncated, unit=unit_column))
        if not names:
            return None
        file = f"{sequence_hash((unit,) for unit in names)}.parquet"
        rows = pa.concat_tables(tables).sort_by([("doc_hash", "ascending"), ("query_hash", "ascending")])
        metadata = {_UNITS_KEY.decode(): ",".join(names)}
        self.storage.create(join(self.folder, file), parquet_bytes(rows, ROW_GROUP_ROWS, metadata))
        return file


def match_contents(kept: pa.Table, documents: pa.Table, schema: pa.Schema) -> pa.Table:
    """Every row that is kept by content with the one of DOCUMENT_CONTENTS of its content, in a schema."""
    distinct = documents.group_by(DOCUMENT_CONTENTS.names).aggregate([])
    return kept.join(distinct, "doc_hash", join_type="inner").select(schema.names).cast(schema)


def best_scores(scores: pa.Table, documents: Int64) -> tuple[Int64, pa.Table]:
    """One stored score a document and query: a logit goes before a reject, one that lasts before one that may not.

    Of the DOCUMENT_SCORES only those of `documents`, rising numbers (D,), count. Returns rising keys (N,) `position in
    documents << 32 | query`, and their rows with the columns `lasting`, and `tried`: the name of the unit, and how many
    there are if several, so that the name of a further unit is another one.
    """
    numbers = scores["document"].to_numpy()
    position = np.searchsorted(documents, numbers)
    kept = np.append(documents, -1)[position] == numbers
    scores, position = scores.filter(pa.array(kept)).combine_chunks(), position[kept]
    keys = (position.astype(np.int64) << 32) | scores["query"].to_numpy()
    transient = pc.is_in(scores["reason"], value_set=pa.array(sorted(reason.value for reason in TRANSIENT_REASONS)))
    preference = transient.to_numpy().astype(np.int8) * 2 + pc.is_valid(scores["reason"]).to_numpy()
    units = scores["unit"].combine_chunks().dictionary_encode()
    unit_ranks = pc.rank(units.dictionary).to_numpy()[units.indices.to_numpy()]
    order = np.lexsort((unit_ranks, preference, keys))
    starts = np.flatnonzero(np.diff(keys[order], prepend=-1))
    first = order[starts]
    rows = scores.append_column("lasting", pc.invert(transient)).take(pa.array(first))
    times = pa.array(np.diff(starts, append=len(order)))
    several = pc.binary_join_element_wise(rows["unit"], times.cast(pa.string()), " ")
    return keys[first], rows.append_column("tried", pc.if_else(pc.greater(times, 1), several, rows["unit"]))


@dataclass(frozen=True, slots=True)
class PreviousCandidates:
    """The candidates of the last published run. Its plan has them in files by document id, like this run's, so none
    need move."""

    run_id: str
    storage: Storage
    folder: str
    bits: int
    count: int
    queries: QueryList

    def retained(self, part: int, bits: int, validated: ValidatedPairs, queries: QueryList) -> int:
        """How many of the previous candidates are candidates of this part of 2^bits."""
        earlier = self._part("pairs", PAIRS, part, bits), self._part("rejects", REJECTS, part, bits)
        keys = [
            _candidate_ids(earlier[0], self.queries),
            earlier[1].select(_CANDIDATE),
            _candidate_ids(validated.pairs, queries),
            validated.rejects.select(_CANDIDATE),
        ]
        # Candidates of a plan are distinct: what is there twice is in both.
        counts = pa.concat_tables(keys).group_by(_CANDIDATE).aggregate([([], "count_all")])["count_all"]
        return pc.sum(pc.equal(counts, 2)).as_py() or 0

    def _part(self, name: str, schema: pa.Schema, part: int, bits: int) -> pa.Table:
        """Rows of the earlier run's files that fall in this part: it may have had more parts, or fewer."""
        folder = join(self.folder, name)
        existing = {*self.storage.list_names(folder)}
        first, last = (part << self.bits) >> bits, (((part + 1) << self.bits) - 1) >> bits
        files = [part_name(number) for number in range(first, last + 1) if part_name(number) in existing]
        tables = [read_part(self.storage, join(folder, file), schema) for file in files]
        rows = pa.concat_tables([schema.empty_table(), *tables])
        return rows.filter(pa.array(hash_parts(rows["doc_id"], bits) == part)).combine_chunks()


def previous_candidates(storage: Storage, paths: RunPaths) -> PreviousCandidates | None:
    """The candidates of the last published run, if its plan's files still exist."""
    run_id = run_before(storage, paths)
    if run_id is None:
        return None
    previous = RunPaths(paths.output, run_id)
    try:
        plan = load_plan(storage, previous)
    except StorageError as error:
        logger.warning("%s; candidates dropped since then are not counted", error)
        return None
    folder = plan_folder(previous, plan.attempt) if plan else ""
    if plan is None or not storage.exists(join(folder, "queries")):
        return None
    return PreviousCandidates(run_id, storage, folder, plan.bits, plan.candidates, query_list(storage, previous, plan))


def _candidate_ids(pairs: pa.Table, queries: QueryList) -> pa.Table:
    """The ids of PAIRS, pair by pair."""
    rows, numbers, _ = flat(pairs)
    ids = [queries.column("query_id").take(pa.array(numbers)), pairs["doc_id"].take(pa.array(rows))]
    return pa.Table.from_arrays(ids, names=_CANDIDATE)
