"""Documents that nothing names are neither decoded nor kept, and change nothing of what is drawn."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lakerank.lake.storage import Storage
from lakerank.training.batches import Sampler, Selection
from lakerank.training.tables import Columns, Sources, TrainingLake, read_lake


def picture(side: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (side, 60), "gold").save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def with_more(tmp_path: Path) -> Callable[[str, Mapping[str, Any]], str]:
    """`with_more(documents, row)`: the documents' address with three more before them, of other ids and pictures."""

    def write(documents: str, row: Mapping[str, Any]) -> str:
        table = pq.read_table(documents)
        more = [row | {"doc_id": f"more {side}", "image": picture(side)} for side in (10, 20, 30)]
        path = str(tmp_path / "documents.parquet")
        pq.write_table(pa.concat_tables([pa.Table.from_pylist(more, table.schema), table]), path)
        return path

    return write


def drawn(lake: TrainingLake, hard_negatives: int = 0) -> list[list[str]]:
    sampler = Sampler(lake, Selection({}, {}, {}, hard_negatives), {})
    batches = [sampler.draw(np.random.default_rng(seed), 2, 4, 0.0, None) for seed in range(5)]
    return [[lake.documents.ids[row] for row in batch.documents] for batch in batches]


def test_documents_that_nothing_names_are_not_decoded(
    plain_lake: dict[str, str], with_more: Callable[[str, Mapping[str, Any]], str], tmp_path: Path
) -> None:
    names = {"query_id": ["red.en", "elsewhere"], "doc_id": ["more 20", "more 30"]}
    ranks = pa.array([1, 1], pa.int32())
    pq.write_table(pa.table(names | {"first_stage_rank": ranks}), tmp_path / "candidates.parquet")
    sources = Sources(
        documents=with_more(plain_lake["documents"], {}),
        queries=plain_lake["queries"],
        qrels=plain_lake["qrels"],
        candidates=str(tmp_path / "candidates.parquet"),
    )
    whole = read_lake(Storage(), sources, Columns(), 84, whole=True)
    lake = read_lake(Storage(), sources, Columns(), 84)
    assert lake.documents.ids == tuple(one for one in whole.documents.ids if one not in ("more 10", "more 30"))
    assert len(lake.pixels) == len(whole.pixels) - 2
    assert drawn(lake, 1) == drawn(whole, 1)


def test_documents_of_a_topic_that_is_asked_for_are_kept(
    colour_lake: Path, with_more: Callable[[str, Mapping[str, Any]], str]
) -> None:
    tables = {name: str(colour_lake / f"{name}.parquet") for name in ("documents", "queries", "qrels")}
    columns = Columns("topic", "kind")
    for topic, kept in (("gold", 0), ("red", 3), (None, 0)):
        more = with_more(tables["documents"], {"topic": topic, "kind": "picture"})
        sources = Sources(**tables | {"documents": more})
        lake, whole = (read_lake(Storage(), sources, columns, 56, whole=all_of_it) for all_of_it in (False, True))
        assert len(lake.documents.ids) == len(whole.documents.ids) - 3 + kept
        assert drawn(lake) == drawn(whole)


def test_a_lake_takes_over_the_pictures_of_another(plain_lake: dict[str, str]) -> None:
    lake = read_lake(Storage(), Sources(**plain_lake), Columns(), 84)
    known = list(lake.pixels)
    again = read_lake(Storage(), Sources(**plain_lake), Columns(), 84, pictures=lake.pictures)
    assert all(one is other for one, other in zip(again.pixels, known, strict=True))
    assert again.documents.pictures.tolist() == lake.documents.pictures.tolist()
