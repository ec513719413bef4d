"""Explanations of a run: which parts, of which pairs, each tested; what is not explained; where boxes are."""

from __future__ import annotations

import io
import json
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageOps

from lakerank import Document, Query
from lakerank.cli import main
from lakerank.errors import StorageError
from lakerank.explain.explainer import Explainer, unmeasured
from lakerank.explain.job import Request, _asked, _rows, explain_run
from lakerank.explain.parts import _stored_box, passages
from lakerank.lake.ranked import row_locations
from lakerank.lake.runs import RunPaths, write_manifest
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import parquet_bytes
from lakerank.limits import Limits
from lakerank.model.jina_m0.config import read_settings
from lakerank.model.jina_m0.weights import load_network
from lakerank.model.spec import CheckpointSpec, RuntimeOptions
from lakerank.plan.plan import Tables
from lakerank.records import DocumentGroup
from lakerank.runner import LocalRunner
from lakerank.schemas import COMBINED, DOCUMENTS, EXPLANATIONS, RANKED

ROOT = Path(__file__).parents[2]
PICTOGRAMS = pq.read_table(ROOT / "lib/lakerank/ingest/demo_lake/documents.parquet").to_pylist()
ARABIC = "بريد وارد: رسالة, ظرف, بريد إلكتروني, خطاب, صندوق"


def page(turned: int | None = None) -> bytes:
    """Four pictograms in one image; `turned`: stored so that Exif has to turn it."""
    image = Image.new("RGB", (168, 252), "white")
    for place, row in enumerate([row for row in PICTOGRAMS if row["image"]][:4]):
        image.paste(Image.open(io.BytesIO(row["image"])).convert("RGB"), (place % 2 * 84, place // 2 * 84))
    buffer, exif = io.BytesIO(), Image.Exif()
    if turned:
        exif[0x0112] = turned
        image = image.transpose(Image.Transpose.ROTATE_90)
    image.save(buffer, "JPEG", quality=95, exif=exif)
    return buffer.getvalue()


def write(path: Path, rows: list[dict[str, Any]], **types: pa.DataType) -> str:
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(list(types.items()))), path)
    return str(path)


def write_documents(folder: Path, **texts: str) -> str:
    rows = [{"doc_id": name, "text": text} for name, text in texts.items()]
    rows += [{"doc_id": "page", "image": page()}, {"doc_id": "turned", "image": page(turned=6)}]
    rows += [{"doc_id": "damaged", "image": page()[:300]}]
    return write(folder / "documents.parquet", rows, doc_id=pa.string(), text=pa.string(), image=pa.binary())


class Lake:
    """A published run of numbered queries, and jobs on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ids, words = range(2), ("inbox tray", "red apple")
        documents = write_documents(folder, arabic=ARABIC, later="red apple, fruit", word="apple")
        queries = [{"query_id": number, "text": text} for number, text in zip(ids, words, strict=True)]
        pairs = [
            {"query_id": n, "doc_id": d} for n in ids for d in ("arabic", "later", "word", "page", "turned", "damaged")
        ]
        tables = {
            "documents": documents,
            "queries": write(folder / "queries.parquet", queries, query_id=pa.int64(), text=pa.string()),
            "candidates": write(folder / "candidates.parquet", pairs, query_id=pa.int64(), doc_id=pa.string()),
            "qrels": write(
                folder / "qrels.parquet",
                [pair | {"relevance": 2} for pair in pairs if pair["doc_id"] != "damaged"],
                query_id=pa.int64(),
                doc_id=pa.string(),
                relevance=pa.int32(),
            ),
            "output": str(folder / "out"),
        }
        self.settings = [f"--set=lake.{name}={value}" for name, value in tables.items()]
        assert self.call("rerank", "--run-id=r")["published"]

    def call(self, command: str, *options: str, status: int = 0) -> Any:
        done = CliRunner().invoke(main, [command, "--config", str(ROOT / "conf/demo.yaml"), *self.settings, *options])
        assert done.exit_code == status, done.output
        return json.loads(done.stdout.splitlines()[-1])

    def explain(self, *options: str, status: int = 0) -> Any:
        return self.call("explain", "--run-id=r", *options, status=status)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return Lake(tmp_path_factory.mktemp("lake"))


def test_parts_are_where_the_stored_document_has_them_and_a_rerun_goes_on(lake: Lake) -> None:
    (lake.folder / "some").write_text("1\n\nnone\n")
    first = lake.explain("--top=9", "--queries", str(lake.folder / "some"))
    assert (first["pairs"], first["explained"], first["not_explained"]) == (5, 5, {"image_undecodable": 1})
    assert first["unknown_queries"] == 1
    rest = lake.explain("--top=9")
    assert (rest["pairs"], rest["found"], rest["explained"]) == (10, 5, 5)
    assert lake.explain("--top=2")["explained"] == 0
    assert lake.explain("--top=1", "--queries", str(lake.folder / "some"))["pairs"] == 1
    table = pq.read_table(rest["explanations"])
    assert table.schema.field("query_id").type == pa.int64()
    pairs = defaultdict(list)
    for row in table.to_pylist():
        pairs[row["query_id"], row["doc_id"]].append(row)
    assert len(pairs) == 10
    sizes = {"page": (168, 252), "turned": (252, 168)}
    for (_, doc_id), rows in pairs.items():
        assert sum(row["weight"] for row in rows) == pytest.approx(1, abs=1e-5)
        assert len({row["faithful"] for row in rows}) == 1
        if doc_id in sizes:
            assert [row["kind"] for row in rows] == ["box"] * 54
            area = sum((row["x1"] - row["x0"]) * (row["y1"] - row["y0"]) for row in rows)
            assert area == pytest.approx(168 * 252, rel=1e-4)
            assert max(row["x1"] for row in rows) == sizes[doc_id][0]
            heaviest = sorted(range(54), key=lambda n: -rows[n]["weight"])[:11]  # a fifth
            assert {rows[n]["query_words"] for n in range(54) if n not in heaviest} == {None}
            assert {rows[n]["query_words"] for n in heaviest} <= {None, "inbox", "tray", "red", "apple"}
        if doc_id == "arabic":
            words = [ARABIC[row["start"] : row["end"]] for row in rows]
            assert words == ["بريد وارد", "رسالة", "ظرف", "بريد إلكتروني", "خطاب, صندوق"]
        if doc_id == "word":
            assert [row["faithful"] for row in rows] == [False]  # nothing is left to compare with


@pytest.mark.nightly
def test_the_report_says_where_an_explained_document_is_ranked_and_how_it_is_judged(lake: Lake) -> None:
    lake.explain("--top=9")
    lake.call("evaluate", "--run-id=r")
    report = (lake.folder / "out/runs/r/report.html").read_text("utf-8")
    section = report.partition('id="reasons"')[2].partition("</section>")[0]
    assert re.search(r"rank [1-6], relevance 0\.\d{3}, judged 2<", section)
    assert re.search(r"[^.\d]\d+% <bdi>", section)
    assert not re.search(r"\.\d+%", section)


def test_what_changed_since_the_run_is_said_and_not_explained(lake: Lake, tmp_path: Path) -> None:
    changed = Lake(tmp_path)
    write_documents(tmp_path, arabic=ARABIC, later="green pear")  # and "word" is gone
    assert changed.explain("--top=9")["not_explained"] == {"content_changed": 4}


def test_a_run_that_is_not_published_is_not_explained(lake: Lake) -> None:
    lake.call("rerank", "--run-id=planned", "--stage=plan")
    assert "planned" in lake.call("explain", "--run-id=planned", status=1)["message"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"7\nnone\n", "run 'r' has no list of 7, none; name ids of its queries"),
        (b"\n", "empty; write the id of a query a line"),
        (b"\xff\xfe1\n", "not UTF-8"),
    ],
)
def test_a_file_of_queries_that_names_none_is_refused(lake: Lake, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "ids").write_bytes(content)
    assert message in lake.explain("--queries", str(tmp_path / "ids"), status=2)["message"]


def test_a_damaged_file_is_named(lake: Lake) -> None:
    folder = Path(lake.explain()["explanations"])
    file = next(folder.iterdir())
    data = file.read_bytes()
    file.write_bytes(data[:200] + b"\0" + data[201:])
    assert "damaged" in lake.explain(status=1)["message"]
    file.write_bytes(data)


def test_a_model_that_was_not_measured_is_named_with_those_that_were() -> None:
    identity = CheckpointSpec("embedded").identify(Limits()).identities[0]
    other = replace(identity, parameters=2_000_000_000)
    assert "jina-reranker-m0 of 2,000,000,000 weights" in str(unmeasured([other]))
    assert "embedded" in str(unmeasured([other]))


def test_a_pair_is_explained_by_the_last_stage_that_scored_it(tmp_path: Path) -> None:
    paths = RunPaths(str(tmp_path), "r")
    write_manifest(Storage(), paths, {})
    numbers = {"query_id": "q", "logit": 1.0, "relevance": 0.5, "label": 1, "truncated": False}
    stages = ([1, 2], [1], [1])
    rows = [numbers | {"doc_id": f"d{n}", "rank": n, "scored_by": by} for n, by in enumerate(stages, start=1)]
    table = pa.Table.from_pylist(rows, schema=COMBINED)
    Storage().create(join(paths.ranked, "part-00000.parquet"), parquet_bytes(table, 10))
    request = Request(paths, Tables("", "", ""), (None, None), 2, None)  # type: ignore[arg-type]
    assert [(pair.doc_id, pair.stage) for pair in _asked(Storage(), request)] == [("d1", 1), ("d2", 0)]


class RecordingStorage(Storage):
    """Says which Parquet files were opened."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []

    def open_parquet(self, file: Any, *how: Any) -> Any:
        self.opened.append(str(file))
        return super().open_parquet(file, *how)


def test_explanations_are_read_once_however_many_pairs_there_are(tmp_path: Path) -> None:
    paths, storage = RunPaths(str(tmp_path), "r"), RecordingStorage()
    files = {"ranked_files": [], "rejected_files": [], "units": [], "reused_units": []}
    write_manifest(storage, paths, files | {"scorer": "s", "plan": {"attempt": "a"}})
    pairs = 65_537  # more than the driver takes at once
    ids = {"query_id": [f"q{n}" for n in range(pairs)], "doc_id": ["d"] * pairs}
    numbers = {"rank": 1, "logit": 1.0, "relevance": 0.5, "label": 1, "truncated": False}
    written = ("kind", "span"), ("weight", 0.5), ("method", "leave-one-out"), ("faithful", True)
    for schema, values, address in (
        (RANKED, numbers, join(paths.ranked, "part-00000.parquet")),
        (EXPLANATIONS, dict(written), join(paths.explanations, "a.parquet")),
    ):
        rows = pa.table(
            {
                field.name: pa.array(ids.get(field.name, [values.get(field.name)] * pairs), field.type)
                for field in schema
            }
        )
        storage.create(address, parquet_bytes(rows, 1_000))
    factory = SimpleNamespace(scorer=CheckpointSpec("embedded").identify(Limits()))
    stages: Any = [SimpleNamespace(scorer="s", device="cpu", factory=factory)]
    summary = explain_run(LocalRunner(), storage, Request(paths, Tables("", "", ""), stages, 1, None))
    assert (summary["pairs"], summary["found"], summary["explained"]) == (pairs, pairs, 0)
    assert storage.opened.count(join(paths.explanations, "a.parquet")) == 1


def test_who_replaced_a_table_meanwhile_is_told_to_explain_again(tmp_path: Path) -> None:
    uri = write(tmp_path / "d.parquet", [{"doc_id": "d", "text": "old"}], doc_id=pa.string(), text=pa.string())
    places, files = row_locations(Storage(), uri, DOCUMENTS, ["d"])
    assert [blob.text for blob in _rows(Storage(), places.values(), "doc_id", files)] == [b"old"]
    write(tmp_path / "d.parquet", [{"doc_id": "d", "text": "newer"}], doc_id=pa.string(), text=pa.string())
    with pytest.raises(StorageError, match=r"d\.parquet: replaced .*run explain again$"):
        list(_rows(Storage(), places.values(), "doc_id", files))


def test_of_a_page_with_a_text_only_boxes_name_words() -> None:
    spec = CheckpointSpec("embedded", dtype="float32")
    identity = spec.identify(Limits()).identities[0]
    reranker: Any = spec.load("cpu", Limits(), RuntimeOptions(device_threads=1))
    group = DocumentGroup(
        Document("d", "red apple, fruit. inbox tray, letter", images=(page(),)), (Query("q", "red apple"),)
    )
    (scored,) = reranker.score_groups([group])
    (explanation,) = Explainer(reranker, identity).explain([group], {("q", "d"): scored.logit})
    rows = [*explanation.rows()]  # type: ignore[union-attr]
    assert {row["kind"] for row in rows} == {"box", "span"}
    assert {row["kind"] for row in rows if row["query_words"]} == {"box"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one two three four five six", ["one", "two", "three four", "five", "six"]),
        ("There are a.b, and 3.5! See below, here", ["There are", "a.b", "and 3.5", "See below, here"]),
        ("拉炮彩带，兴奋。派对", ["拉炮", "彩带", "兴奋", "派对"]),
        ("a b c d\ne f g h\ni j k l\nm n o p", ["a b c d", "e f g h", "i j k l", "m n o p"]),
        ("?!", ["?", "!"]),
    ],
)
def test_a_text_is_cut_where_it_pauses(text: str, expected: list[str]) -> None:
    assert [text[start:end] for start, end in passages(text, 5)] == expected


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_is_where_the_stored_image_has_what_is_seen_in_it(orientation: int) -> None:
    stored = np.zeros((60, 90), np.uint8)
    stored[20:30, 15:30] = 255
    image, exif = Image.fromarray(stored), Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(buffer)))
    rows, columns = (sorted({*np.nonzero(upright)[axis].tolist()}) for axis in (0, 1))
    grid = 6, 6
    cell = rows[0] * grid[0] // upright.shape[0], columns[0] * grid[1] // upright.shape[1]
    assert _stored_box(cell, grid, (90, 60, orientation)) == pytest.approx((15, 20, 30, 30))


def test_attention_is_that_of_transformers() -> None:
    """The probabilities of its eager attention, times the norms of the values."""
    spec = CheckpointSpec("embedded", dtype="float32")
    identity = spec.identify(Limits()).identities[0]
    reranker: Any = spec.load("cpu", Limits(), RuntimeOptions(device_threads=torch.get_num_threads()))
    document, query = Document("d", image=page()), Query("q", "red apple")
    (prepared,) = reranker.preprocessor.prefetch([DocumentGroup(document, (query,))], 1000)
    (taken,) = reranker.engine.attention([prepared.engine_input], 2)
    network = load_network(Path(identity.folder), read_settings(Path(identity.folder), "float32"), "cpu")
    network.model.language_model.set_attn_implementation("eager")
    encoded, asked = prepared.document, prepared.queries[0]
    ids = torch.tensor(np.concatenate((encoded.token_ids, asked.token_ids)))
    positions = torch.tensor(np.concatenate((encoded.positions, asked.positions + encoded.end), axis=1))[:, None]
    values: list[torch.Tensor] = []
    layer = network.model.language_model.layers[2].self_attn.v_proj
    layer.register_forward_hook(lambda module, given, out: values.append(out[0].view(len(ids), 2, -1)))
    with torch.inference_mode():
        embeds = network.model.language_model.embed_tokens(ids)
        places = torch.tensor(np.flatnonzero(encoded.token_ids == network.config.image_token_id))
        embeds[places] = reranker.engine._visual_tokens([encoded], reranker.engine._document_images)[0]
        result = network.model.language_model(
            inputs_embeds=embeds[None], position_ids=positions, output_attentions=True, use_cache=False
        )
    expected = (result.attentions[2][0] * values[0].norm(dim=-1).T[:, None]).mean(0)
    tokens = len(encoded.token_ids)
    np.testing.assert_allclose(taken, expected[tokens:, :tokens].numpy(), atol=1e-4)
