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
from lakerank.limits import Limits
from lakerank_training.batches import Sampler, TrainingStage
from lakerank_training.dataset import Dataset, DatasetTables, ImageStore, read_dataset
from training_lakes import table_paths


def png(side: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (side, 60), "gold").save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def with_more(tmp_path: Path) -> Callable[[str, Mapping[str, Any]], str]:
    """`with_more(documents, row)`: the documents' address with three more before them, of other ids and images."""

    def write(documents: str, row: Mapping[str, Any]) -> str:
        table = pq.read_table(documents)
        more = [row | {"doc_id": f"more {side}", "image": png(side)} for side in (10, 20, 30)]
        path = str(tmp_path / "documents.parquet")
        pq.write_table(pa.concat_tables([pa.Table.from_pylist(more, table.schema), table]), path)
        return path

    return write


def drawn(dataset: Dataset, hard_negatives: int = 0) -> list[list[str]]:
    sampler = Sampler(dataset, TrainingStage("pairs", 1, 2, 4, hard_negatives))
    batches = []
    for seed in range(5):
        random = np.random.default_rng(seed)
        batches.append(sampler.draw(random, sampler.draw_topics(random)))
    return [[dataset.documents.ids[row] for row in batch.documents] for batch in batches]


def images(side: int) -> ImageStore:
    return ImageStore(Limits(max_pixels=side**2))


def test_documents_that_nothing_names_are_not_decoded(
    plain_lake: dict[str, str], with_more: Callable[[str, Mapping[str, Any]], str], tmp_path: Path
) -> None:
    names = {"query_id": ["red.en", "elsewhere"], "doc_id": ["more 20", "more 30"]}
    ranks = pa.array([1, 1], pa.int32())
    pq.write_table(pa.table(names | {"first_stage_rank": ranks}), tmp_path / "candidates.parquet")
    paths = DatasetTables(
        documents=with_more(plain_lake["documents"], {}),
        queries=plain_lake["queries"],
        qrels=plain_lake["qrels"],
        candidates=str(tmp_path / "candidates.parquet"),
    )
    whole = read_dataset(Storage(), paths, images(84), whole=True)
    dataset = read_dataset(Storage(), paths, images(84))
    assert dataset.documents.ids == tuple(name for name in whole.documents.ids if name not in ("more 10", "more 30"))
    assert len(dataset.images.pixels) == len(whole.images.pixels) - 2
    assert drawn(dataset, 1) == drawn(whole, 1)


def test_documents_of_a_topic_that_is_asked_for_are_kept(
    colour_lake: Path, with_more: Callable[[str, Mapping[str, Any]], str]
) -> None:
    tables = table_paths(colour_lake)
    for topic, kept in (("gold", 0), ("red", 3), (None, 0)):
        more = with_more(tables["documents"], {"topic": topic, "kind": "picture"})
        paths = DatasetTables(**tables | {"documents": more}, topic="topic", kind="kind")
        dataset, whole = (read_dataset(Storage(), paths, images(56), whole=keep) for keep in (False, True))
        assert len(dataset.documents.ids) == len(whole.documents.ids) - 3 + kept
        assert drawn(dataset) == drawn(whole)


def test_datasets_share_images(plain_lake: dict[str, str]) -> None:
    dataset = read_dataset(Storage(), DatasetTables(**plain_lake), images(84))
    known = list(dataset.images.pixels)
    again = read_dataset(Storage(), DatasetTables(**plain_lake), dataset.images)
    assert all(pixels is other for pixels, other in zip(again.images.pixels, known, strict=True))
    assert again.documents.images.tolist() == dataset.documents.images.tolist()


def test_an_image_at_an_address_is_read_and_several_are_no_training_row(
    plain_lake: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "red.png").write_bytes(png(60))
    judged = pq.read_table(plain_lake["qrels"])["doc_id"][0].as_py()
    columns = {
        "doc_id": ["address", judged, "one", "two", "gone"],
        "image_uri": ["red.png", None, None, None, "no.png"],
    }
    columns |= {"image": [None, png(60), *[None] * 3], "images": [None, None, [png(60)], [png(60), png(50)], None]}
    pq.write_table(pa.table(columns), tmp_path / "documents.parquet")
    storage = Storage(Storage().options, image_roots=(str(tmp_path),))
    tables = DatasetTables(**plain_lake | {"documents": str(tmp_path / "documents.parquet")})
    documents = read_dataset(storage, tables, images(56), whole=True).documents
    assert documents.ids == ("address", judged, "one")
    assert len(set(documents.images.tolist())) == 1, "the same image, whatever it is kept in"
    assert "2 rows left out, the first of them two: modality_unsupported: 2 images" in caplog.text


def test_instructions_without_a_place_are_told(
    plain_lake: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = pq.read_table(plain_lake["queries"])
    told = pa.array([" ", "Find fruit.", *[None] * (table.num_rows - 2)], pa.string())
    pq.write_table(table.append_column("instruction", told), tmp_path / "queries.parquet")
    tables = [plain_lake, plain_lake | {"queries": str(tmp_path / "queries.parquet")}]
    plain, instructed = (read_dataset(Storage(), DatasetTables(**each), images(56)).queries for each in tables)
    assert instructed.texts == plain.texts
    assert caplog.text.count("1 queries have an instruction: no model that is trained has a place for it") == 1
