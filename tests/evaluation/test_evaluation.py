"""An evaluation: which queries count, which slices there are, and in what order the first stage is read."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakerank import schemas
from lakerank.errors import SchemaError, StorageError
from lakerank.lake.runs import RunPaths
from lakerank.lake.storage import Storage
from lakerank.records import Candidate
from lakerank_evaluation.inputs import find_inputs
from lakerank_pictograms.evaluate_checkpoint import first_stage_order, read_attributes


def test_only_judged_queries_of_the_lake_count(small_lake):
    evaluation = small_lake.evaluated().evaluation
    assert evaluation.overall.queries == 3
    assert evaluation.unjudged == 1
    assert evaluation.overall.reranked["Recall@10"] == pytest.approx((1 + 0 + 1) / 3)
    assert evaluation.inputs.totals.rejected == {"out_of_memory": 1}
    json.dumps(evaluation.as_dict(), allow_nan=False)


def test_slices_by_every_column_the_queries_have(small_lake):
    evaluation = small_lake.evaluated().evaluation
    result = {(row.dimension, row.value): row.queries for row in evaluation.slices}
    assert result == {
        ("task", "text→text"): 2,
        ("task", "image→mixed"): 1,
        ("language", "de"): 1,
        ("language", "fr"): 1,
    }, "the modality says the same as the task and is left out"


def test_the_modality_is_derived_where_the_lake_has_no_tasks(small_lake):
    path = small_lake.tables.queries
    pq.write_table(pq.read_table(path).drop_columns(["task", "language"]), path)
    evaluation = small_lake.evaluated().evaluation
    result = {(row.dimension, row.value): row.queries for row in evaluation.slices}
    assert result == {("modality", "text→text"): 2, ("modality", "image→mixed"): 1}


def test_qrels_of_another_lake_are_an_error(small_lake):
    table = pa.Table.from_pylist([{"query_id": "x", "doc_id": "a", "relevance": 1}], schema=schemas.QRELS)
    pq.write_table(table, small_lake.tables.qrels)
    with pytest.raises(SchemaError, match="judges no query"):
        small_lake.evaluated()


def test_a_run_that_is_not_there_is_an_error(small_lake):
    with pytest.raises(StorageError):
        find_inputs(Storage(), small_lake.tables, RunPaths(small_lake.paths.output, "r2"))


def test_the_first_stage_is_ordered_by_rank_then_score_then_id():
    candidates = [
        Candidate("q", "none-b"),
        Candidate("q", "none-a", float("nan")),
        Candidate("q", "low", 0.1),
        Candidate("q", "high", 0.9),
        Candidate("q", "second", 5.0, 2),
        Candidate("q", "first", None, 1),
    ]
    ordered = [candidate.doc_id for candidate in sorted(candidates, key=first_stage_order)]
    assert ordered == ["first", "second", "high", "low", "none-a", "none-b"]


@pytest.mark.parametrize("statistics", [True, False])
def test_attributes_are_right_with_and_without_statistics(tmp_path, statistics):
    rows = [
        {"doc_id": "t", "text": "x", "name": "Tea"},
        {"doc_id": "i", "image": b"x"},
        {"doc_id": "b", "text": "x", "image": b"x"},
        {"doc_id": "n"},
        {"doc_id": "t", "text": "again", "name": "No"},
        {"doc_id": "e", "images": []},
        {"doc_id": "l", "images": [b"x", b"y"]},
        {"doc_id": "a", "image_uri": "x.png"},
        {"doc_id": "m", "text": "x", "images": [b"x"], "image_uri": "x.png"},
    ]
    schema = pa.schema([*schemas.DOCUMENTS, pa.field("name", pa.dictionary(pa.int32(), pa.string()))])
    path = tmp_path / "documents.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=2, write_statistics=statistics)
    result = read_attributes(Storage(), str(path), schemas.DOCUMENTS, ("name", "missing"), {*"tibnelam"})
    assert {ident: one.modality for ident, one in result.items()} == {
        "t": "text",
        "i": "image",
        "b": "text+image",
        "n": "nothing",
        "e": "nothing",
        "l": "image",
        "a": "image",
        "m": "text+image",
    }
    assert result["t"].extra == {"name": "Tea"}
    assert (result["b"].ref.row_group, result["b"].ref.row) == (1, 0)
