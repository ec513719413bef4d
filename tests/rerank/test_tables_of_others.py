"""Tables as other systems keep them (ids of any type, columns of other names, partitions) give the same lists."""

from __future__ import annotations

import uuid
from dataclasses import replace
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakerank.errors import RunConflictError
from lakerank.lake.ranked import ranked_lists, shown_documents
from lakerank.lake.runs import RunPaths, read_manifest
from lakerank.lake.storage import Storage
from lakerank.rerank.run import run
from lakerank.spark.runtime.runner import SparkRunner

#: How the number of a query or document is its id: in the tables, and as text. Both sort as the numbers do.
IDS = {
    "int64": (pa.int64(), lambda n: 2**53 + 1 + n, str),
    "uint8": (pa.uint8(), lambda n: 100 + n, str),
    "decimal": (pa.decimal128(12, 2), lambda n: Decimal(1000 + n), str),
    "uuid": (pa.binary(16), lambda n: uuid.UUID(int=n).bytes, lambda value: str(uuid.UUID(bytes=value))),
    "text": (pa.dictionary(pa.int32(), pa.string()), lambda n: f"id {n:03}", str),
}
WRITTEN = {"int64": pa.int64(), "uint8": pa.uint8()}


def rewrite(lake, kind, names=("documents", "queries", "candidates")):
    """The lake with ids of another type; those of the candidates as text, which joins them all the same."""
    arrow_type, value, text = IDS[kind]
    for name in names:
        table = pq.read_table(lake.folder / f"{name}.parquet")
        for column in ("query_id", "doc_id"):
            if column in table.column_names:
                ids = [value(int(ident[1:])) for ident in table[column].to_pylist()]
                ids = pa.array(map(text, ids)) if name == "candidates" else pa.array(ids, arrow_type)
                table = table.set_column(table.column_names.index(column), column, ids)
        pq.write_table(table, lake.folder / f"{name}.parquet")


def plain_rows(lake, run_id, kind=None):
    """Rows of ranked/ with the ids that the lake had at first."""
    numbers = {} if kind is None else {IDS[kind][2](IDS[kind][1](n)): n for n in range(30)}
    rows = []
    for row in lake.ranked(run_id):
        ids = [row.pop(name) for name in ("query_id", "doc_id")]
        if kind is not None:
            ids = [f"{side}{numbers[str(ident)]:02}" for side, ident in zip("qd", ids, strict=True)]
        rows.append((*ids, row))
    return rows


def check_ids(runner, lake, kind):
    expected = plain_rows(lake, "r1")
    rewrite(lake, kind)
    assert run(runner, Storage(), lake.job("r2"))["reused"] == 240
    assert plain_rows(lake, "r2", kind) == expected
    schema = pq.read_schema(lake.folder / "out/ranked/run_id=r2/part-00000.parquet")
    assert {schema.field(name).type for name in ("query_id", "doc_id")} == {WRITTEN.get(kind, pa.string())}
    document = IDS[kind][2](IDS[kind][1](3))
    shown = shown_documents(Storage(), str(lake.folder / "documents.parquet"), [document])
    assert shown[document].text == "document 3"
    query = IDS[kind][2](IDS[kind][1](0))
    lists = ranked_lists(Storage(), RunPaths(str(lake.folder / "out"), "r2"), [query, "none", "-"])
    assert [len(documents) for documents in lists.values()] == [20]


@pytest.mark.parametrize("kind", IDS)
def test_ids_of_any_type_join_as_text_and_lists_have_the_tables_type(runner, published, kind):
    check_ids(runner, published, kind)


def test_a_lake_of_numbers_that_becomes_one_of_text_is_the_same_lake(runner, lake):
    rewrite(lake, "uint8")
    run(runner, Storage(), lake.job("r1"))
    for name in ("documents", "queries"):
        table = pq.read_table(lake.folder / f"{name}.parquet")
        pq.write_table(
            table.set_column(0, table.column_names[0], table[0].cast(pa.string())), lake.folder / f"{name}.parquet"
        )
    cascade = (replace(lake.job("any").stages[0], scorer="beef", factory=lake.factory("1"), top=3),)
    run(runner, Storage(), lake.job("r2", cascade))
    manifest = read_manifest(Storage(), str(lake.folder / "out"), "r2")
    lost = {check["name"]: check["value"] for check in manifest["audit"] if "lost" in check["name"]}
    assert manifest["passes"][0]["counts"]["reused"] == 240
    assert lost
    assert set(lost.values()) == {0}
    assert [type(row["doc_id"]) for row in (*lake.ranked("r1"), *lake.ranked("r2"))] == [int] * 240 + [str] * 240


def test_columns_of_other_names_are_mapped_and_belong_to_the_plan(runner, published):
    """Nested ones, in other letters, and from a partition's folder."""
    documents, queries = (pq.read_table(published.folder / f"{name}.parquet") for name in ("documents", "queries"))
    page = pa.StructArray.from_arrays(
        [documents["text"].combine_chunks(), documents["doc_id"].combine_chunks()], ["Body", "other"]
    )
    (published.folder / "documents.parquet").unlink()
    (published.folder / "documents.parquet/image=__HIVE_DEFAULT_PARTITION__").mkdir(parents=True)
    table = pa.table({"SKU": documents["doc_id"], "text": pa.array(["wrong"] * 30), "page": page})
    pq.write_table(
        table, published.folder / "documents.parquet/image=__HIVE_DEFAULT_PARTITION__/a.parquet", row_group_size=7
    )
    pq.write_table(
        queries.rename_columns(["QUERY_ID", "Text", "Image", "Instruction"]), published.folder / "queries.parquet"
    )
    mapped = {"doc_id": "sku", "text": "page.body"}
    storage = Storage(columns={str(published.folder / "documents.parquet"): mapped})
    shown = shown_documents(storage, str(published.folder / "documents.parquet"), ["d03"])
    assert (shown["d03"].text, shown["d03"].page) == ("document 3", None)  # a column `page` that is no page's number
    assert run(runner, storage, published.job("r2"))["reused"] == 240
    assert published.ranked("r2") == published.ranked("r1")
    other = replace(published.job("r3"), stages=(replace(published.job("r3").stages[0], scorer="beef"),))
    assert run(runner, storage, other)["scored"] == 240  # rows are fetched by the same names
    assert published.ranked("r3") == published.ranked("r1")
    run(runner, storage, published.job("r4"), ["plan"])
    with pytest.raises(RunConflictError, match="other tables"):
        run(
            runner,
            Storage(columns={key: value | {"text": "text"} for key, value in storage.columns.items()}),
            published.job("r4"),
        )


@pytest.mark.nightly
@pytest.mark.spark
def test_ids_of_any_type_join_in_spark(spark, published):
    check_ids(SparkRunner(spark), published, "int64")
