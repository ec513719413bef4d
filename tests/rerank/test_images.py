"""Runs over documents of several images, and of images by address."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lakerank.errors import SchemaError
from lakerank.fingerprint import content_hash
from lakerank.ingest.readers.pdf import read_pdf
from lakerank.ingest.readers.reader import ReadOptions
from lakerank.lake.storage import Storage, join
from lakerank.limits import Limits
from lakerank.model.spec import CheckpointSpec, RuntimeOptions
from lakerank.plan.plan import PlanLimits
from lakerank.records import RejectReason
from lakerank.rerank.run import run
from lakerank.rerank.score import SpecFactory

Row = dict[str, Any]


def picture(colour: str, kind: str = "PNG", *more: str) -> bytes:
    stream = io.BytesIO()
    first, *others = (Image.new("RGB", (56, 56), each) for each in (colour, *more))
    first.save(stream, kind, **({"save_all": True, "append_images": others} if others else {}))
    return stream.getvalue()


PDF = picture("red", "PDF", "blue")
PAGES = [page.image for page in read_pdf("m.pdf", PDF, ReadOptions())]
RED, BLUE = picture("red"), picture("blue")


def write(lake: Any, documents: list[Row]) -> None:
    """A lake of these documents, each a candidate of one query; `images` are bytes or addresses, as they come."""
    columns = dict.fromkeys(name for row in documents for name in row)
    table = pa.table({name: [row.get(name) for row in documents] for name in columns})
    pq.write_table(table, lake.folder / "documents.parquet", row_group_size=3)
    lake.write("queries", [{"query_id": "q", "text": "red"}])
    lake.write("candidates", [{"query_id": "q", "doc_id": row["doc_id"]} for row in documents])


def scores(lake: Any, scorer: str = "f00d") -> dict[str, Row]:
    folder = lake.folder / "out" / "scores" / f"scorer={scorer}"
    return {row["doc_id"]: row for file in folder.iterdir() for row in pq.read_table(file).to_pylist()}


def logits(lake: Any, run_id: str) -> dict[str, float]:
    return {row["doc_id"]: row["logit"] for row in lake.ranked(run_id)}


def reasons(lake: Any, run_id: str) -> dict[str, tuple[str, str]]:
    return {row["doc_id"]: (row["reason"], row["detail"]) for row in lake.rejected(run_id)}


@pytest.fixture
def job_of(lake: Any) -> Callable[..., Any]:
    bounds = replace(lake.job("any").audit.bounds, max_reject_rate=None)
    return lambda run_id, **changes: lake.job(run_id, audit=replace(lake.job("any").audit, bounds=bounds), **changes)


@pytest.fixture
def place(store: tuple[Storage, str]) -> tuple[Storage, str]:
    """A folder of images, and a storage that may read them."""
    storage, folder = store
    for name, data in (("red.png", RED), ("blue.png", BLUE), ("m.pdf", PDF)):
        storage.create(join(folder, "pages", name), data)
    return Storage(storage.options, image_roots=(folder,)), join(folder, "pages")


def test_images_by_address_are_those_in_the_table(
    runner: Any, tmp_path: Path, place: tuple[Storage, str], job_of: Callable[..., Any], lake: Any
) -> None:
    storage, folder = place
    pages = f"{folder}/m.pdf#page="
    by_address: list[Row] = [
        {"doc_id": "red", "image_uri": f"{folder}/red.png"},
        {"doc_id": "text", "text": "blue", "image_uri": "pages/blue.png"},
        {"doc_id": "page", "image_uri": f"{pages}2"},
        {"doc_id": "pages", "text": "m", "images": [f"{pages}1", f"{pages}2"]},
        {"doc_id": "own", "image": RED, "image_uri": "http://where.example/it/came/from"},
        {"doc_id": "none", "text": "t", "images": []},
    ]
    in_table: list[Row] = [
        {"doc_id": "red", "image": RED},
        {"doc_id": "text", "text": "blue", "image": BLUE},
        {"doc_id": "page", "image": PAGES[1]},
        {"doc_id": "pages", "text": "m", "images": PAGES},
        {"doc_id": "own", "image": RED},
        {"doc_id": "none", "text": "t"},
    ]
    other = tmp_path / "other"
    other.mkdir()
    embedded = type(lake)(other)
    write(embedded, in_table)
    write(lake, by_address)
    assert run(runner, storage, job_of("r"))["rejected"] == 0
    assert run(runner, storage, replace(job_of("r"), paths=embedded.job("r").paths, tables=embedded.job("r").tables))
    assert lake.ranked("r") == embedded.ranked("r")
    assert len(set(logits(lake, "r").values())) == 5, "contents differ, but for two of the same image"
    hashes = {doc_id: row["doc_hash"] for doc_id, row in scores(lake).items()}
    assert hashes == {doc_id: row["doc_hash"] for doc_id, row in scores(embedded).items()}
    assert hashes["pages"] == content_hash("m", *PAGES)
    assert run(runner, storage, job_of("again"))["reused"] == 6, "an address's content is scored once"


def test_addresses_that_give_no_image_are_rejects(
    runner: Any, place: tuple[Storage, str], job_of: Callable[..., Any], lake: Any
) -> None:
    storage, folder = place
    write(lake, [
        {"doc_id": "gone", "images": [f"{folder}/red.png", f"{folder}/later.png"]},
        {"doc_id": "outside", "text": "words", "images": ["/etc/passwd"]},
        {"doc_id": "web", "images": ["https://host.example/1.png?X-Amz-Signature=c2lnbmVk"]},
        {"doc_id": "red", "images": [f"{folder}/red.png"]},
    ])  # fmt: skip
    summary = run(runner, storage, job_of("r", max_image_bytes=1000))
    assert (summary["scored"], summary["rejected"]) == (1, 3)
    rejected = reasons(lake, "r")
    assert {reason for reason, _ in rejected.values()} == {RejectReason.IMAGE_UNREACHABLE}
    assert rejected["gone"][1].startswith("image 2: ")
    assert "lake.image_roots" in rejected["outside"][1]
    assert "not allowed" in rejected["web"][1]
    assert "c2lnbmVk" not in rejected["web"][1]
    storage.create(f"{folder}/later.png", BLUE)
    assert run(runner, storage, job_of("r2", max_image_bytes=1000))["scored"] == 1, "what is there by now is scored"
    assert logits(lake, "r2").keys() == {"gone", "red"}
    storage.create(f"{folder}/large.png", b"\x89PNG" + bytes(2000))
    write(lake, [{"doc_id": "large", "image_uri": f"{folder}/large.png"}])
    run(runner, storage, job_of("r3", max_image_bytes=1000))
    assert "over 1000 bytes" in reasons(lake, "r3")["large"][1]


def test_an_image_that_changes_after_it_was_indexed_is_a_reject(
    runner: Any, tmp_path: Path, job_of: Callable[..., Any], lake: Any
) -> None:
    (tmp_path / "a.png").write_bytes(RED)
    (tmp_path / "b.png").write_bytes(RED)
    storage = Storage(Storage().options, image_roots=(str(tmp_path),))
    write(lake, [
        {"doc_id": "computed", "image_uri": "a.png", "content_hash": None},
        {"doc_id": "given", "image_uri": "b.png", "content_hash": "v1"},
    ])  # fmt: skip
    run(runner, storage, job_of("r"))
    (tmp_path / "a.png").write_bytes(BLUE)
    (tmp_path / "b.png").write_bytes(BLUE)
    limits = replace(lake.limits(), unit_tokens=101)
    for file in (lake.folder / "out" / "scores" / "scorer=f00d").iterdir():
        file.unlink()
    run(runner, storage, job_of("r2", limits=limits))
    assert "changed" in reasons(lake, "r2")["computed"][1]
    assert logits(lake, "r2").keys() == {"given"}, "a hash that is given is trusted"
    write(lake, [{"doc_id": "computed", "image_uri": "a.png", "content_hash": "v2"}])
    run(runner, storage, job_of("r3"))
    assert logits(lake, "r3") == {"computed": logits(lake, "r2")["given"]}


@pytest.mark.parametrize("kind", ["bytes", "structs", "mixed"])
def test_lists_of_images_of_other_types(
    runner: Any, tmp_path: Path, job_of: Callable[..., Any], lake: Any, kind: str
) -> None:
    """Large lists, fixed lists, and files as Hugging Face's datasets keep them."""
    (tmp_path / "blue.png").write_bytes(BLUE)
    storage = Storage(Storage().options, image_roots=(str(tmp_path),))
    structs = pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])
    values: dict[str, tuple[list[Any], pa.DataType]] = {
        "bytes": ([RED, BLUE], pa.large_list(pa.large_binary())),
        "structs": ([{"bytes": RED, "path": None}, {"bytes": BLUE, "path": "b"}], pa.list_(structs, 2)),
        "mixed": ([{"bytes": RED, "path": None}, {"bytes": None, "path": "blue.png"}], pa.list_(structs)),
    }
    write(lake, [{"doc_id": "d", "image": RED}])
    images, type_ = values[kind]
    table = pa.table({"doc_id": ["d"], "image": pa.nulls(1), "images": pa.array([images], type_)})
    pq.write_table(table, lake.folder / "documents.parquet")
    run(runner, storage, job_of("r"))
    assert scores(lake)["d"]["doc_hash"] == content_hash(None, RED, BLUE)


def test_image_beside_images_is_an_error_of_the_table(runner: Any, job_of: Callable[..., Any], lake: Any) -> None:
    write(lake, [{"doc_id": "same", "image": RED, "images": [RED, BLUE]}, {"doc_id": "null", "image": RED}])
    assert run(runner, Storage(), job_of("r"))["rejected"] == 0
    write(lake, [{"doc_id": "cover", "image": BLUE, "images": [RED, BLUE]}])
    with pytest.raises(SchemaError, match="'cover' has an image and images"):
        run(runner, Storage(), job_of("r2"))


def test_scores_say_what_was_read(runner: Any, job_of: Callable[..., Any], lake: Any) -> None:
    """The bundled checkpoint, all frames: what does not fit is left out, counted, and the cost knows of it."""
    tiff = picture("red", "TIFF", "blue", "lime")
    write(lake, [
        {"doc_id": "pages", "images": [RED, BLUE, tiff]}, {"doc_id": "tiff", "images": [tiff]},
        {"doc_id": "many", "images": [RED] * 40}, {"doc_id": "text", "text": "red"},
        {"doc_id": "torn", "images": [RED, RED[:60]]},
    ])  # fmt: skip
    spec, limits = CheckpointSpec("embedded", dtype="float32"), Limits(128, 32, frames="all")
    scorer = spec.identify(limits)
    plan = replace(lake.limits(unit_tokens=10**6), document=scorer.document_sizing(), query=scorer.query_sizing())
    factory = SpecFactory(spec, limits, RuntimeOptions(device_threads=1), scorer)
    job = job_of("r", factory=factory, scorer=scorer.fingerprint, limits=plan)
    run(runner, Storage(), job)
    rows = scores(lake, scorer.fingerprint)
    read = {
        name: (row["document_images"], row["document_frames_left_out"], row["document_truncated"])
        for name, row in rows.items()
    }
    assert read["pages"] == (3, 0, False)
    assert read["tiff"] == (1, 0, False)
    assert read["many"][0] < 40
    assert read["many"][1:] == (0, True)
    assert read["text"] == (None, None, False)
    assert reasons(lake, "r")["torn"][1].startswith("image 2: ")
    assert {row["doc_id"]: row["truncated"] for row in lake.ranked("r")} == {
        "pages": False, "tiff": False, "many": True, "text": False
    }  # fmt: skip


def test_the_cost_of_documents_counts_all_images(runner: Any, job_of: Callable[..., Any], lake: Any) -> None:
    def cost(documents: list[Row], run_id: str, **changes: Any) -> int:
        write(lake, documents)
        plan: PlanLimits = replace(lake.limits(), document=replace(lake.limits().document, **changes))
        run(runner, Storage(), job_of(run_id, limits=plan, scorer=run_id))
        return int(json.loads((lake.folder / "out" / "runs" / run_id / "plan" / "plan.json").read_text())["cost"])

    alone, listed, two = (cost([{"doc_id": "d", **images}], name) for name, images in (
        ("1", {"image": RED}), ("2", {"images": [RED]}), ("3", {"images": [RED, BLUE]})
    ))  # fmt: skip
    assert alone == listed == two - 14, "4 visual tokens of 3.5 more"
    tiff = [{"doc_id": "d", "image": picture("red", "TIFF", "blue", "lime")}]
    assert (cost(tiff, "4"), cost(tiff, "5", all_frames=True)) == (alone, alone + 28)
    assert cost([{"doc_id": "d", "images": [RED] * 9}], "6", max_text_tokens=20) == alone + 56, "no more than are read"
