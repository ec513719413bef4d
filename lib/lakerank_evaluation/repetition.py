"""How much of a run's lists is repetition: near duplicates of a better document, and a few of their clusters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lakerank import schemas
from lakerank.lake.storage import Storage
from lakerank.lake.tables import fragments, read_table_file
from lakerank_evaluation.examples import Content, contents_of
from lakerank_evaluation.inputs import Inputs

#: Clusters that the report shows, documents of each, and the ranks that count as the top of a list.
_SHOWN, _DOCUMENTS, _TOP = 4, 6, 10

_MARKED = pa.schema([*(field.with_nullable(True) for field in list(schemas.RANKED)[:3]), ("duplicate_of", pa.string())])


@dataclass(frozen=True, slots=True)
class Repetition:
    """Pairs of the lists, and those that repeat a better document; where they are marked, also how many lists have
    some, the mean share of a list, the share of all tops, and the largest clusters of lists as ids, the best first.
    """

    pairs: int
    repeated: int
    lists: int | None = None
    lists_with_some: int | None = None
    mean_share: float | None = None
    top_share: float | None = None
    clusters: tuple[tuple[str, ...], ...] = ()

    @property
    def share(self) -> float:
        return self.repeated / self.pairs if self.pairs else 0.0

    def as_dict(self) -> dict[str, Any]:
        """As `evaluation.json` has it."""
        return {**asdict(self), "share": self.share}


def repetition(storage: Storage, inputs: Inputs) -> Repetition | None:
    """The repetition of a run's lists; None where its config left duplicates as they are."""
    counts = inputs.manifest.get("counts", {})
    if inputs.manifest.get("ranking", {}).get("duplicates") == "collapse":
        return Repetition(counts["ranked"] + counts["beyond_depth"] + counts["collapsed"], counts["repeated"])
    if inputs.manifest.get("ranking", {}).get("duplicates") != "mark":
        return None
    sums = dict.fromkeys(("pairs", "repeated", "lists", "some", "share", "top", "top_repeated"), 0.0)
    largest: dict[frozenset[str], tuple[str, ...]] = {}
    for rows in _files(storage, inputs.paths.ranked):
        repeated, top = pc.is_valid(rows["duplicate_of"]), pc.less_equal(rows["rank"], _TOP)
        flags = pa.table({"query": rows["query_id"], "repeated": pc.cast(repeated, pa.int64())})
        lists = flags.group_by("query").aggregate([("repeated", "sum"), ("repeated", "mean")])
        values = {
            "pairs": rows.num_rows,
            "repeated": pc.sum(repeated).as_py(),
            "lists": lists.num_rows,
            "some": pc.sum(pc.greater(lists["repeated_sum"], 0)).as_py(),
            "share": pc.sum(lists["repeated_mean"]).as_py(),
            "top": pc.sum(top).as_py(),
            "top_repeated": pc.sum(pc.and_(top, repeated)).as_py(),
        }
        sums = {name: total + (values[name] or 0) for name, total in sums.items()}
        marked = rows.filter(repeated).group_by(["query_id", "duplicate_of"], use_threads=False)
        for row in marked.aggregate([("doc_id", "list")]).to_pylist():
            ids = (row["duplicate_of"], *row["doc_id_list"])
            largest.setdefault(frozenset(ids), ids)
        kept = sorted(largest.values(), key=lambda ids: (-len(ids), ids))
        largest = {frozenset(ids): ids for ids in kept[: 8 * _SHOWN]}
    clusters = _disjoint(sorted(largest.values(), key=lambda ids: (-len(ids), ids)))
    pairs, repeated, lists, some = (int(sums[name]) for name in ("pairs", "repeated", "lists", "some"))
    mean_share, top_share = (sums[a] / max(1, sums[b]) for a, b in (("share", "lists"), ("top_repeated", "top")))
    return Repetition(pairs, repeated, lists, some, mean_share, top_share, clusters)


def shown_clusters(storage: Storage, inputs: Inputs, found: Repetition | None) -> list[list[Content]]:
    """The documents of the clusters that are shown."""
    if found is None:
        return []
    ids = {doc_id for cluster in found.clusters for doc_id in cluster}
    contents = contents_of(storage, inputs.tables.documents, schemas.DOCUMENTS, ids)
    return [[contents[doc_id] for doc_id in cluster] for cluster in found.clusters]


def _files(storage: Storage, folder: str) -> Iterator[pa.Table]:
    for part in fragments(storage, folder, _MARKED):
        batches = [batch for *_, batch in read_table_file(storage, part.file, _MARKED)]
        yield pa.Table.from_batches(batches, schema=_MARKED)


def _disjoint(clusters: list[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    """The first of some clusters that share no document with one before, cut to what is shown."""
    chosen: list[tuple[str, ...]] = []
    for ids in clusters:
        if len(chosen) < _SHOWN and not any({*ids} & {*other} for other in chosen):
            chosen.append(ids)
    return tuple(ids[:_DOCUMENTS] for ids in chosen)
