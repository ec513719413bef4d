"""The Python API: what it takes, what it gives, and what it says of everything else."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import lakerank
from lakerank import Document, Limits, PairRejected, Query, RejectReason, RerankModel, load_reranker
from lakerank.errors import CheckpointError
from lakerank.records import DocumentGroup, Reject, ScoredPair
from oracles.pairs import pair_logits


class Lengths:
    """Scores a document by the length of what it holds; rejects what is empty or says so."""

    logit_bias, fingerprint = 2.0, "lengths"

    def __init__(self) -> None:
        self.groups: list[DocumentGroup] = []

    def score_groups(self, groups: Iterable[DocumentGroup]) -> Iterator[ScoredPair | Reject]:
        self.groups = [*groups]
        for group in reversed(self.groups):
            text, image = group.document.text, group.document.image
            for query in group.queries:
                ids = query.query_id, group.document.doc_id
                if (not text and not image) or text == "bad":
                    yield Reject(*ids, RejectReason.EMPTY_DOCUMENT, "neither text nor image")
                else:
                    yield ScoredPair(*ids, float(len(text or "") + len(image or b"")), 3, 10, False, False)


@pytest.fixture
def model() -> RerankModel:
    return RerankModel(Lengths(), "m", "lengths", 7, "cpu", "float32")


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Path) -> RerankModel:
    return load_reranker(tiny_checkpoint, device="cpu", limits=Limits(max_source_pixels=10_000))


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


PIXELS = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)


def test_every_form_of_an_image_has_the_score_of_its_file(tiny: RerankModel, tmp_path: Path) -> None:
    file = tmp_path / "page.png"
    file.write_bytes(png(PIXELS))
    data = file.read_bytes()
    transparent = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 255, np.uint8)])
    forms = [
        *(
            data,
            bytearray(data),
            memoryview(data),
            file,
            Image.open(file),
            Image.fromarray(PIXELS),
            PIXELS,
            transparent,
        ),
        *({"image": PIXELS}, Document(image=file), Document(image=Image.fromarray(PIXELS)), Document("d", image=data)),
    ]
    expected = tiny.score([(Query(text="red apple"), Document(image=data))])
    assert expected.dtype == np.float32
    assert tiny.score([("red apple", form) for form in forms]).tolist() == [expected[0]] * len(forms)
    grey = tiny.score([("q", PIXELS[:, :, 0]), ("q", PIXELS[:, :, :1]), ("q", png(PIXELS[:, :, 0]))])
    assert len(set(grey.tolist())) == 1
    as_queries = tiny.score([(form, "red apple") for form in (file, PIXELS, data, Query(image=PIXELS))])
    assert len(set(as_queries.tolist())) == 1


def test_a_sideways_photo_and_modes_that_png_has_not(tiny: RerankModel, tmp_path: Path) -> None:
    photo = Image.fromarray(PIXELS)
    photo.getexif()[0x0112] = 6
    photo.save(tmp_path / "photo.jpg", exif=photo.getexif())
    Image.fromarray(PIXELS).convert("CMYK").save(tmp_path / "print.tif")
    for name in ("photo.jpg", "print.tif"):
        path, opened = tiny.score([("q", tmp_path / name), ("q", Image.open(tmp_path / name))]).tolist()
        assert path == opened, name


def test_scores_are_those_of_the_engine_in_any_container(tiny: RerankModel) -> None:
    pairs = [
        (Query("q", text=query), Document("d", text=text)) for query in ("apple", "table") for text in ("a", "b b")
    ]
    expected = pair_logits(tiny.reranker, pairs).tolist()
    texts = [(query.text, document.text) for query, document in pairs]
    for given_pairs in (pairs, texts, iter(texts), [list(pair) for pair in texts], np.array(texts), tuple(texts)):
        assert tiny.score(given_pairs).tolist() == expected
    assert tiny.score([]).shape == (0,)


#: What was typed, and what the message must name.
MISTAKES: dict[str, tuple[Callable[[RerankModel], Any], str]] = {
    "pair of strings' characters": (lambda m: m.score(["ab", "cd"]), r"pair 0 is of type str; expected \(query, doc"),
    "a pair, not a list": (lambda m: m.score(("apple", "red apple")), "pair 0 is of type str"),
    "a string": (lambda m: m.score("apple"), "pairs: expected a list, found one value of type str"),
    "number": (lambda m: m.score([("q", "a"), ("q", 5)]), r"pair 1: document is of type int; expected a string"),
    "NaN": (lambda m: m.score([("q", math.nan)]), "pair 0: document is NaN; expected a string"),
    "None": (lambda m: m.score([(None, "a")]), "pair 0: query is None; expected a string"),
    "swapped": (lambda m: m.score([(Document(text="a"), Query(text="q"))]), "pair 0: query is of type Document"),
    "text NaN": (lambda m: m.score([("q", Document(text=math.nan))]), "pair 0: document: text is NaN; expected a str"),
    "text bytes": (lambda m: m.score([("q", Document(text=b"a"))]), "text is of type bytes; expected a string"),
    "file name": (lambda m: m.score([("q", Document(image="a.jpg"))]), "pair 0: document: image is a string, which is"),
    "URL": (lambda m: m.score([("q", {"image": "http://a.example/a.png"})]), "neither opened nor fetched"),
    "floats": (lambda m: m.score([("q", PIXELS / 255)]), r"an array \(60, 90, 3\) of float64; expected .* uint8"),
    "channels first": (lambda m: m.score([("q", PIXELS.transpose(2, 0, 1))]), r"an array \(3, 60, 90\) of uint8"),
    "keys": (lambda m: m.score([("q", {"txt": "a"})]), "pair 0: document: unknown key 'txt'; expected text, image"),
    "instruction": (
        lambda m: m.score([({"text": "q", "instruction": 3}, "a")]),
        "query: instruction is of type int; exp",
    ),
    "a document's": (lambda m: m.score([("q", {"instruction": "a"})]), "document: unknown key 'instruction'; expected"),
    "one document": (lambda m: m.rank("q", "red apple"), "documents: expected a list, found one value of type str"),
    "one record": (lambda m: m.rank("q", Document(text="a")), "documents: expected a list, found one .* Document"),
    "one image": (lambda m: m.rank("q", PIXELS), "documents: expected a list, found one value of type ndarray"),
    "documents' type": (lambda m: m.rank("q", ["a", object()]), "document 1 is of type object; expected a string"),
    "query's type": (lambda m: m.rank(7, ["a"]), "the query is of type int; expected a string"),
    "columns": (
        lambda m: m.score(pd.DataFrame({"text": ["a"]})),
        r"neither a column query nor query_image \(found: text",
    ),
    "image column of paths": (lambda m: m.rank("q", pd.DataFrame({"image": ["a.png"]})), "row 0: image is a string"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_a_type_error_that_says_where_and_what_is_accepted(model: RerankModel, mistake: str) -> None:
    typed, message = MISTAKES[mistake]
    with pytest.raises(TypeError, match=message):
        typed(model)


def test_a_string_is_a_text_whatever_it_looks_like(model: RerankModel) -> None:
    for text in ("http://127.0.0.1:1/a.png", "/etc/passwd", "data:image/png;base64,AAAA"):
        assert model.score([("q", text)]).tolist() == [len(text)]


def test_instructions_reach_the_model_or_are_refused(model: RerankModel, tiny: RerankModel) -> None:
    table = pa.table({"query": ["q", "q", "q"], "text": ["red apple"] * 3, "instruction": ["Find fruit.", None, " \n"]})
    model.score(table)
    asked = [query.instruction for group in model.reranker.groups for query in group.queries]
    assert asked == ["Find fruit.", None, " \n"]
    assert tiny.score(table)["reason"].to_pylist() == ["modality_unsupported", None, None]
    for query in (Query(text="q", instruction="Find fruit."), {"text": "q", "instruction": "Find fruit."}):
        with pytest.raises(PairRejected, match="modality_unsupported: an instruction, and this reranker takes none"):
            tiny.rank(query, ["red apple"])


def test_a_text_in_the_place_of_the_id_is_explained(tiny: RerankModel) -> None:
    with pytest.raises(
        PairRejected, match=r"document 'red apple': empty_document: .*first argument of Document is doc_id"
    ):
        tiny.score([("apple", Document("red apple"))])
    with pytest.raises(PairRejected, match=r"query 'apple'.*empty_query: .*first argument of Query is query_id"):
        tiny.score([(Query("apple"), "red apple")])
    with pytest.raises(PairRejected, match=r"^pair 1: empty_document: neither text nor image$"):
        tiny.score([("apple", "a"), ("apple", Document())])
    with pytest.raises(PairRejected, match=r"^document 1: empty_document"):
        tiny.rank("apple", ["a", " "])


def test_rank_is_by_logit_then_by_place(model: RerankModel) -> None:
    items = model.rank("q", ["aa", "a", "bb", Document("d3", text="cccc")])
    assert [(item.index, item.logit, item.text, item.doc_id) for item in items] == [
        (3, 4.0, "cccc", "d3"), (0, 2.0, "aa", ""), (2, 2.0, "bb", ""), (1, 1.0, "a", ""),
    ]  # fmt: skip
    assert items[1].relevance == pytest.approx(0.5)
    assert [item.index for item in model.rank("q", iter(["a", "bb"]), top_k=1)] == [1]
    assert len(model.rank("q", ["a", "bb"], top_k=9, return_documents=False)) == 2
    assert model.rank("q", ["a"], return_documents=False)[0].text is None
    assert model.rank("q", []) == []
    for top_k in (0, -1):
        with pytest.raises(ValueError, match=f"top_k is {top_k}; expected 1 or more"):
            model.rank("q", ["a"], top_k=top_k)


@given(st.lists(st.text(max_size=5)), st.integers(1, 8))
def test_null_keeps_every_place_and_makes_no_score_up(texts: list[str], top_k: int) -> None:
    model = RerankModel(Lengths(), "m", "lengths", 7, "cpu", "float32")
    logits = model.score([("q", text) for text in texts], errors="null")
    assert [math.isnan(logit) for logit in logits] == [text in ("", "bad") for text in texts]
    items = model.rank("q", texts, errors="null")
    assert sorted(item.index for item in items) == [*range(len(texts))]
    assert items[:top_k] == model.rank("q", texts, errors="null", top_k=top_k)
    for item in items:
        assert (item.logit is None) == (item.relevance is None) == (item.reason is not None)
    scored = [item.logit for item in items if item.logit is not None]
    assert scored == sorted(scored, reverse=True)
    assert [item.logit for item in items[: len(scored)]] == scored, "what has no score comes last"


def test_null_gives_the_code_of_whatever_cannot_be_read(tiny: RerankModel, tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(png(PIXELS)[:-50])
    (tmp_path / "text.png").write_text("hello")
    documents = [
        *("good", None, math.nan, pd.NA, " ", tmp_path / "missing.png", tmp_path, tmp_path / "cut.png"),
        *(tmp_path / "text.png", np.zeros((0, 4), np.uint8), np.zeros((200, 200), np.uint8), Image.new("RGB", (0, 1))),
    ]
    reasons = {item.index: item.reason for item in tiny.rank("apple", documents, errors="null")}
    codes = ["empty_document"] * 4 + ["image_undecodable"] * 3
    codes += ["image_unsupported_format", "image_zero_size", "image_too_large", "image_zero_size"]
    assert [reasons[number] for number in range(len(documents))] == [None, *map(RejectReason, codes)]
    (item,) = tiny.rank("apple", [tmp_path / "missing.png"], errors="null")
    assert "missing.png: No such file" in item.detail
    with pytest.raises(PairRejected, match=r"^document 1: image_undecodable: .*missing.png: No such file"):
        tiny.rank("apple", ["good", tmp_path / "missing.png"])
    assert {item.reason for item in tiny.rank(None, ["a", "b"], errors="null")} == {RejectReason.EMPTY_QUERY}
    with pytest.raises(ValueError, match="errors is 'ignore'; expected 'raise' or 'null'"):
        tiny.rank("q", ["a"], errors="ignore")  # type: ignore[arg-type]


def test_documents_alike_are_one_group_whatever_their_ids() -> None:
    lengths = Lengths()
    model = RerankModel(lengths, "m", "lengths", 7, "cpu", "float32")
    model.score(
        [(query, Document(f"d{number}", text=text)) for number, query in enumerate("abc") for text in ("x", "yy")]
    )
    assert [(group.document.text, len(group.queries)) for group in lengths.groups] == [("x", 3), ("yy", 3)]


ROWS = {"query": ["q", "q", None, "q"], "text": ["a", None, "bb", "cccc"], "n": [1, 2, 3, 4]}


def with_an_index(rows: dict[str, list[Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, index=[7, 7, 8, 9])


TABLES = [pd.DataFrame, pl.DataFrame, pa.table, pa.RecordBatch.from_pydict, with_an_index]


@pytest.mark.parametrize("make", TABLES, ids=["pandas", "polars", "arrow", "arrow batch", "index"])
def test_a_table_in_gives_the_table_with_results(tiny: RerankModel, make: Callable[..., Any]) -> None:
    frame = make(ROWS)
    scored = tiny.score(frame)
    assert type(scored) is type(frame)
    rows = scored.to_dict("records") if isinstance(scored, pd.DataFrame) else _rows(scored)
    expected = tiny.score([("q", "a"), ("q", "cccc")])
    assert [rows[0]["logit"], rows[3]["logit"]] == expected.tolist()
    assert [rows[0]["relevance"], rows[3]["relevance"]] == tiny.relevance(expected).tolist()
    assert [row["reason"] for row in rows] == [None, "empty_document", "empty_query", None]
    assert all(row["logit"] is None or math.isnan(row["logit"]) for row in rows[1:3])
    assert [row["n"] for row in rows] == [1, 2, 3, 4]
    again = tiny.score(scored)
    assert (again.column_names if hasattr(again, "column_names") else [*again.columns]).count("logit") == 1
    with pytest.raises(PairRejected, match=r"^row 1: empty_document"):
        tiny.score(frame, errors="raise")

    ranked = tiny.rank("apple", frame, top_k=3)
    rows = ranked.to_dict("records") if isinstance(ranked, pd.DataFrame) else _rows(ranked)
    assert [row["text"] for row in rows] == [item.text for item in tiny.rank("apple", ["a", "bb", "cccc"])]
    if isinstance(frame, pd.DataFrame):
        assert scored.index.tolist() == frame.index.tolist()
        assert [str(kind) for kind in scored.dtypes[["logit", "relevance"]]] == ["float32", "float32"]


def _rows(frame: Any) -> list[dict[str, Any]]:
    return frame.to_pylist() if hasattr(frame, "to_pylist") else frame.to_dicts()


def test_images_in_tables_and_columns_as_lists(tiny: RerankModel) -> None:
    data = png(PIXELS)
    expected = tiny.score([("q", data)]).tolist()
    for column in (
        pa.array([data]),
        pa.array([{"bytes": data, "path": None}]),
        pa.array([data]).cast(pa.large_binary()),
    ):
        assert tiny.score(pa.table({"query": ["q"], "image": column}))["logit"].to_pylist() == expected
    texts = ["a", "bb"]
    order = [item.index for item in tiny.rank("q", texts)]
    for column in (pd.Series(texts), pl.Series(texts), pa.array(texts), pa.chunked_array([texts]), np.array(texts)):
        assert [item.index for item in tiny.rank("q", column)] == order
    assert tiny.score(pl.DataFrame({"query_image": [data], "text": ["a"]}))["logit"][0] == tiny.score([(data, "a")])[0]


def test_a_table_needs_no_library_but_its_own() -> None:
    code = (
        "import sys; sys.modules['polars'] = None\n"
        "import numpy as np; from lakerank.model.frames import records, with_results\n"
        "assert not {'pandas', 'pyarrow'} & sys.modules.keys()\n"
        "import pyarrow as pa; table = pa.table({'text': ['a']})\n"
        "assert records(table, {'text': 'text'}) == [{'text': 'a'}]\n"
        "print(with_results(table, np.float32([1]), np.float32([0.5]), [None]).column_names)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "['text', 'logit', 'relevance', 'reason']"


def test_progress_is_shown_on_request(model: RerankModel, capsys: pytest.CaptureFixture[str]) -> None:
    model.score([("q", "a")] * 3, show_progress=True)
    assert "3/3" in capsys.readouterr().err
    model.rank("q", ["a"])
    assert capsys.readouterr().err == ""


def test_a_model_says_what_it_is(tiny: RerankModel, tiny_checkpoint: Path) -> None:
    parts = f"path={str(tiny_checkpoint)!r}, family='jina-reranker-m0', parameters={tiny.parameters}"
    assert repr(tiny) == f"RerankModel({parts}, device='cpu', dtype='float32')"
    assert tiny.parameters > 10_000
    assert {"load_reranker", "RerankModel", "Limits", "RankResult"} <= {*dir(lakerank)} & {*lakerank.__all__}
    with pytest.raises(TypeError, match="PathLike"):
        load_reranker(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["gpu", "CUDA", "cuda:x", "xpu", "meta", ""])
def test_an_unknown_device_is_refused_with_those_there_are(tmp_path: Path, device: str) -> None:
    with pytest.raises(CheckpointError, match=r"expected auto, cpu, cuda, cuda:0 .* or mps"):
        load_reranker(tmp_path, device=device)
