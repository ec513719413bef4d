"""The files of a plan, written by tasks: pairs by document id, then bins of documents in file order, then units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from lakerank.lake.scores import UNITS, PlannedUnits, write_unit_list
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import Fragment, parquet_bytes, read_table_file
from lakerank.spark.plan import join as inputs
from lakerank.spark.plan.cut import GROUPS, Cuts, name_of, unit_rows
from lakerank.spark.plan.dropped import LastPairs
from lakerank.spark.plan.join import KINDS
from lakerank.spark.plan.lookup import FOUND
from lakerank.spark.plan.pairs import PAIRS, REJECTS, flat, judge
from lakerank.spark.plan.partitions import GROUP_KIND, PLACED_PAIRS, REUSED, STORED_KIND, Bin
from lakerank.spark.plan.queries import QueryList
from lakerank.spark.plan.ranges import Stripes
from lakerank.spark.runtime.frames import gather, parallelism, scatter
from lakerank.spark.runtime.shuffle import BATCHES, exchange, pack

#: What tasks count, summed by name and number.
COUNTS = pa.schema([("what", pa.string()), ("number", pa.int64()), ("value", pa.int64())])

_SOURCES = pa.schema([("file", pa.string()), ("version", pa.string())])
_CUT = pa.schema([("task", pa.int64()), ("units", pa.int64()), ("largest", pa.int64())])
_ROW_GROUP_ROWS = 100_000

Counts = Mapping[str, Mapping[int, int]]


def part_name(number: int) -> str:
    """The name of a numbered file."""
    return f"part-{number:05d}.parquet"


def read_part(storage: Storage, address: str, schema: pa.Schema) -> pa.Table:
    """A whole file of a plan."""
    return pa.Table.from_batches(
        [batch for *_, batch in read_table_file(storage, address, schema, batch_rows=_ROW_GROUP_ROWS)], schema=schema
    ).combine_chunks()


def write_pairs(
    storage: Storage,
    folder: str,
    blocks: Sequence[DataFrame],
    queries: QueryList,
    stripes: Stripes,
    bits: int,
    bucket_rows: int,
    last: LastPairs | None,
) -> Counts:
    """Judge every candidate; leave pairs to score in `pairs/` and the others in `rejects/`, a file a part.

    Args:
        blocks: candidates and documents, by document id.
        bucket_rows: neighbouring queries whose pairs are counted together.
        last: pairs of the last published run, to be told from those that are no longer listed.

    Returns:
        Totals under 0, and numbers of pairs by stripe and by bucket of queries.
    """

    def work(part: int, tables: dict[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        judged = judge(
            tables[inputs.LISTED_KIND],
            tables[inputs.LOOSE_KIND],
            tables[inputs.PLACED_KIND],
            queries.column("query_id"),
            queries.column("reason"),
        )
        rows, numbers, _ = flat(judged.pairs)
        for name, table in (("pairs", judged.pairs), ("rejects", judged.rejects)):
            if table.num_rows:
                storage.replace(join(folder, name, part_name(part)), parquet_bytes(table, _ROW_GROUP_ROWS))
        documents = judged.pairs["document"].to_numpy()[rows]
        totals = {
            "candidates": len(rows) + judged.rejects.num_rows,
            "rejected": judged.rejects.num_rows,
            "duplicates": judged.duplicates,
            "documents": judged.documents,
            "kept": last.still_listed(part, bits, judged, queries) if last else 0,
        }
        yield counts_of({name: {0: value} for name, value in totals.items()})
        yield counted("stripe", stripes.of(documents))
        yield counted("bucket", numbers // bucket_rows)

    return summed(exchange(blocks, 2**bits, KINDS, work, COUNTS))


def pair_blocks(
    spark: SparkSession, storage: Storage, folder: str, stripes: Stripes, edges: npt.NDArray[np.int64]
) -> DataFrame:
    """The pairs of `pairs/` as blocks for bins of stripes, in the order of the documents table."""
    pairs_folder = join(folder, "pairs")

    def read(name: str) -> Iterator[pa.RecordBatch]:
        rows = read_part(storage, join(pairs_folder, name), PAIRS).drop_columns(["doc_id"])
        bins = np.searchsorted(edges, stripes.of(rows["document"].to_numpy()), side="right")
        yield from pack(GROUP_KIND, bins, rows.cast(PLACED_PAIRS))

    return scatter(spark, storage.list_names(pairs_folder), read, BATCHES)


def write_bins(storage: Storage, folder: str, blocks: Sequence[DataFrame], bins: int, content: Bin) -> Counts:
    """Tell new pairs from those that have a score: the first into `groups/`, the others into `reused/`, a file a bin.

    Returns:
        Totals under 0, the cost of each bin's groups, and (under "unit …") the units whose scores are used again.
    """

    def work(number: int, tables: dict[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        groups, reused, totals = content.split(tables[GROUP_KIND], tables[STORED_KIND])
        for name, table in (("groups", groups), ("reused", reused)):
            if table.num_rows:
                storage.replace(join(folder, name, part_name(number)), parquet_bytes(table, _ROW_GROUP_ROWS))
        yield counts_of({name: {0: value} for name, value in totals.items()})
        yield counts_of({"cost": {number: pc.sum(groups["cost"]).as_py() or 0}})
        units = pc.unique(reused["unit"]).to_pylist()
        yield counts_of({f"unit {unit}": {0: 1} for unit in units})

    return summed(exchange(blocks, bins, {GROUP_KIND: PLACED_PAIRS, STORED_KIND: FOUND}, work, COUNTS))


def write_units(
    spark: SparkSession, storage: Storage, folder: str, costs: Mapping[int, int], cuts: Cuts, queries: QueryList
) -> tuple[PlannedUnits, int]:
    """Cut the groups of all bins into units, one file each below `units/`; lists of them go to `unit_lists/`.

    Args:
        costs: of each bin's groups, in tokens.

    Returns:
        The units in file order, and the cost of the largest.
    """
    tasks = min(cuts.units, max(4 * parallelism(spark), cuts.units // 64)) if cuts.total else 0
    shares = [(task * cuts.units // tasks, (task + 1) * cuts.units // tasks) for task in range(tasks)]
    begins: dict[int, int] = {}
    passed = 0
    for number in sorted(costs):
        begins[number] = passed
        passed += costs[number]

    def cut(task: int) -> Iterator[pa.RecordBatch]:
        listed = []
        for unit in _units_between(storage, folder, begins, costs, cuts, shares[task]):
            rows = unit_rows(unit, queries)
            name = name_of(rows)
            address = join(folder, "units", f"{name}.parquet")
            storage.replace(address, parquet_bytes(rows, max(1, rows.num_rows)))
            pairs = pc.sum(pc.list_value_length(rows["queries"])).as_py()
            listed.append({"unit": name, "groups": rows.num_rows, "pairs": pairs, "cost": pc.sum(unit["cost"]).as_py()})
        table = pa.Table.from_pylist(listed, schema=UNITS)
        write_unit_list(storage, folder, task, table)
        largest = pc.max(table["cost"]).as_py() or 0
        yield pa.RecordBatch.from_pydict({"task": [task], "units": [len(listed)], "largest": [largest]}, schema=_CUT)

    report = gather(spark, range(tasks), cut, _CUT).sort_by("task")
    counts = tuple(report["units"].to_pylist())
    return PlannedUnits(storage, folder, counts), max(report["largest"].to_pylist(), default=0)


def _units_between(
    storage: Storage,
    folder: str,
    begins: Mapping[int, int],
    costs: Mapping[int, int],
    cuts: Cuts,
    share: tuple[int, int],
) -> Iterator[pa.Table]:
    """The groups of each unit of a range of units, in order; only bins that hold some are read."""
    first, end = cuts.share(share[0])[0], cuts.share(share[1] - 1)[1]
    held = GROUPS.empty_table()
    held_units = np.zeros(0, np.int64)
    for number, begin in begins.items():
        if not costs[number] or begin >= end or begin + costs[number] <= first:
            continue
        rows = read_part(storage, join(folder, "groups", part_name(number)), GROUPS)
        cost = rows["cost"].to_numpy()
        units = cuts.unit_of(begin + np.cumsum(cost) - cost)
        inside = (units >= share[0]) & (units < share[1])
        held = pa.concat_tables([held, rows.filter(pa.array(inside))]).combine_chunks()
        held_units = np.concatenate([held_units, units[inside]])
        if not len(held_units):
            continue
        edges = np.flatnonzero(np.diff(held_units)) + 1
        for a, b in zip([0, *edges[:-1]], edges, strict=False):
            yield held.slice(a, b - a).combine_chunks()
        last = int(edges[-1]) if len(edges) else 0
        held, held_units = held.slice(last), held_units[last:]
    if held.num_rows:
        yield held.combine_chunks()


def write_sources(storage: Storage, address: str, files: Sequence[Fragment]) -> None:
    """Keep which version of each file of the tables the plan was made from."""
    rows = [{"file": fragment.file.uri, "version": fragment.file.version} for fragment in files]
    storage.replace(address, parquet_bytes(pa.Table.from_pylist(rows, schema=_SOURCES), _ROW_GROUP_ROWS))


def read_sources(storage: Storage, address: str) -> dict[str, str]:
    """The version of each file of the tables, as planned."""
    rows = read_part(storage, address, _SOURCES)
    return dict(zip(rows["file"].to_pylist(), rows["version"].to_pylist(), strict=True))


def read_reused(storage: Storage, folder: str, name: str) -> pa.Table:
    """A bin's pairs that have a score, as REUSED."""
    return read_part(storage, join(folder, "reused", name), REUSED)


def read_rejects(storage: Storage, folder: str, name: str) -> pa.Table:
    """A part's pairs that cannot be scored, as REJECTS."""
    return read_part(storage, join(folder, "rejects", name), REJECTS)


def summed(counts: DataFrame) -> Counts:
    """COUNTS added up in Spark; what is left is a few thousand numbers, whatever the size of the lake."""
    rows = counts.groupBy("what", "number").agg(F.sum("value").alias("value")).toArrow()
    totals: dict[str, dict[int, int]] = {}
    for row in rows.to_pylist():
        totals.setdefault(row["what"], {})[row["number"]] = row["value"]
    return totals


def counts_of(values: Counts) -> pa.RecordBatch:
    """Counts as rows of COUNTS."""
    rows = [(what, number, value) for what, numbers in values.items() for number, value in numbers.items()]
    whats, numbers, amounts = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.RecordBatch.from_pydict({"what": whats, "number": numbers, "value": amounts}, schema=COUNTS)


def counted(what: str, numbers: npt.NDArray[np.int64]) -> pa.RecordBatch:
    """How often each number stands among some (N,), as rows of COUNTS."""
    distinct, amounts = np.unique(numbers, return_counts=True)
    arrays = [pa.array([what] * len(distinct), pa.string()), pa.array(distinct), pa.array(amounts.astype(np.int64))]
    return pa.RecordBatch.from_arrays(arrays, schema=COUNTS)
