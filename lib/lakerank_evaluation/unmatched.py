"""Judgements that match nothing: of queries that the lake has not, and of documents that it has not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lakerank import schemas
from lakerank.lake.storage import Storage
from lakerank.lake.tables import Fragment, read_table_file
from lakerank_evaluation.pairs import Pairs

#: Ids that a message names, and documents that are looked up at most.
_NAMED, _LOOKED_UP = 3, 100_000


@dataclass(frozen=True, slots=True)
class Unmatched:
    """Judged queries and documents without a row: their number, and the first ids. `pairs`: judged relevant ones of
    such documents; `example`: an id that documents do have, of a piece of such a document where there is one.
    """

    queries: int = 0
    query_ids: tuple[str, ...] = ()
    documents: int = 0
    doc_ids: tuple[str, ...] = ()
    pairs: int = 0
    example: str = ""

    def sentences(self) -> Iterator[str]:
        """What is to be said of them."""
        if self.queries:
            names = _names(self.query_ids, self.queries)
            yield f"judged queries that are not in the queries table: {self.queries:,} ({names})"
        if self.documents:
            yield (
                f"judged documents that are not in the documents table: {self.documents:,} "
                f"({_names(self.doc_ids, self.documents)}); its ids are such as {self.example}"
            )


def _names(ids: Sequence[str], count: int) -> str:
    return ", ".join(ids) + (", …" if count > len(ids) else "")


class Unlisted:
    """Judged queries that are unknown, and judged documents of known queries that are in no list of theirs."""

    def __init__(self) -> None:
        self._queries, self._query_ids = 0, list[str]()
        self._documents: Counter[str] = Counter()  # relevant pairs

    def add(self, pairs: Pairs) -> None:
        """Add a block."""
        unknown = [pairs.query_ids[number] for number in np.flatnonzero(~pairs.is_known)]
        self._queries += len(unknown)
        self._query_ids = sorted([*self._query_ids, *unknown])[:_NAMED]
        if len(self._documents) < _LOOKED_UP:
            rows = pairs.judged & (pairs.first_stage < 0) & (pairs.ranked < 0) & pairs.is_known[pairs.query]
            ids = pairs.doc_ids.filter(pa.array(rows)).to_pylist()
            for doc_id, relevant in zip(ids, (pairs.judgement[rows] > 0).tolist(), strict=True):
                self._documents[doc_id] += relevant

    def unmatched(self, storage: Storage, documents: Sequence[Fragment]) -> Unmatched:
        """Those that the documents table has not; it is read only where some are in no list."""
        queries = (self._queries, tuple(self._query_ids))
        missing, example, piece = set(self._documents), "", ""
        wanted = pa.array(sorted(missing), pa.string())
        for fragment in documents if missing else ():
            for _, _, batch in read_table_file(storage, fragment.file, schemas.DOCUMENTS, ["doc_id"]):
                ids = batch["doc_id"]
                missing -= set(ids.filter(pc.is_in(ids, value_set=wanted)).to_pylist())
                example = example or next(filter(None, ids.to_pylist()), "")
                if not piece:
                    whole = pc.is_in(pc.replace_substring_regex(ids, "#.*$", ""), value_set=wanted)
                    parts = ids.filter(pc.and_(whole, pc.match_substring(ids, "#"))).to_pylist()
                    piece = next((part for part in parts if part.partition("#")[0] in missing), "")
        pairs = sum(self._documents[doc_id] for doc_id in missing)
        return Unmatched(
            *queries, len(missing), tuple(sorted(missing)[:_NAMED]), pairs, piece or example if missing else ""
        )
