"""Benchmarks in miniature, each in exactly the files and fields that its publisher ships."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lakerank.lake.storage import Storage
from lakerank_datasets.benchmark_lake import BenchmarkLake, LayoutOptions, ingest_benchmark

Rows = list[dict[str, Any]]


def picture(red: int, green: int, blue: int) -> bytes:
    """A PNG of one colour, large enough for the model to look at."""
    buffer = io.BytesIO()
    Image.new("RGB", (56, 56), (red, green, blue)).save(buffer, "PNG")
    return buffer.getvalue()


RED, GREEN, BLUE, GREY = picture(200, 30, 30), picture(30, 160, 40), picture(20, 40, 190), picture(120, 120, 120)


def jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line; gzipped if the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def lines(path: Path, *rows: tuple[Any, ...], between: str = "\t") -> None:
    """Fields a line, apart by tabs or spaces."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(between.join(map(str, row)) + "\n" for row in rows), "utf-8")


def parquet(path: Path, rows: Rows) -> None:
    """A Parquet file as `datasets` writes it: images are structs of bytes and path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def image(content: bytes, name: str = "p.png") -> dict[str, Any]:
    """An image as `datasets` stores it."""
    return {"bytes": content, "path": name}


def beir(root: Path) -> None:
    """Two datasets, of which one has two subsets, and a query of another split."""
    folder = root / "scifact"
    jsonl(
        folder / "corpus.jsonl",
        [
            {"_id": "d1", "title": "Apples", "text": "A red apple lies on the table.", "metadata": {}},
            {"_id": "d2", "title": "", "text": "The locomotive pulls a red train.", "metadata": {}},
            {"_id": "d3", "title": "Pears", "text": "", "metadata": {}},
        ],
    )
    jsonl(
        folder / "queries.jsonl",
        [
            {"_id": "1", "text": "red apple", "metadata": {}},
            {"_id": "2", "text": "train locomotive", "metadata": {}},
            {"_id": "3", "text": "pears of the training split", "metadata": {}},
        ],
    )
    header = ("query-id", "corpus-id", "score")
    lines(folder / "qrels" / "test.tsv", header, (1, "d1", 2), (1, "d2", 1), (2, "d2", 1))
    lines(folder / "qrels" / "train.tsv", header, (3, "d3", 1))
    for number, forum in enumerate(("android", "unix")):
        folder = root / "cqadupstack" / forum
        jsonl(
            folder / "corpus.jsonl",
            [{"_id": str(k), "title": f"{forum} {k}", "text": f"red text {k}"} for k in range(3)],
        )
        jsonl(folder / "queries.jsonl", [{"_id": "7", "text": f"red {forum} {number}"}])
        lines(folder / "qrels" / "test.tsv", header, (7, number, 1))


def coir(root: Path) -> None:
    """A dataset of two splits, and one programming language of CodeSearchNet."""
    for name, text in (("cosqa", "def red(apple): pass"), ("CodeSearchNet-go", "func apple() {}")):
        data = root / f"{name}-queries-corpus" / "data"
        documents = [
            {
                "_id": f"d{k}",
                "title": "",
                "text": f"{text} {k}",
                "partition": "test",
                "language": "",
                "meta_information": {"k": k},
            }
            for k in range(3)
        ]
        queries = [
            {
                "_id": f"q{k}",
                "title": "",
                "text": f"apple function {k}",
                "partition": part,
                "language": "",
                "meta_information": {"k": k},
            }
            for k, part in enumerate(("test", "train"))
        ]
        parquet(data / "corpus-00000-of-00002.parquet", documents[:2])
        parquet(data / "corpus-00001-of-00002.parquet", documents[2:])
        parquet(data / "queries-00000-of-00001.parquet", queries)
        qrels = root / f"{name}-qrels" / "data"
        parquet(qrels / "test-00000-of-00001.parquet", [{"query_id": "q0", "corpus_id": "d0", "score": 1}])
        parquet(qrels / "train-00000-of-00001.parquet", [{"query_id": "q1", "corpus_id": "d1", "score": 1}])


def miracl(root: Path) -> None:
    """Two languages whose document ids are the same, one without spaces between words; a corpus of two files."""
    texts = {
        "de": (
            "Apfel",
            ["Der rote Apfel liegt auf dem Tisch.", "Ein Zug fährt.", "Birnen sind grün."],
            "roter Apfel rote",
        ),
        "th": ("แอปเปิล", ["แอปเปิลสีแดงวางอยู่บนโต๊ะ", "รถไฟกำลังวิ่ง", "ลูกแพร์สีเขียว"], "แอปเปิลสีแดง"),
    }
    for language, (title, passages, query) in texts.items():
        release = f"miracl-v1.0-{language}"
        corpus = root / f"miracl-corpus-v1.0-{language}"
        rows = [{"docid": f"7#{k}", "title": title, "text": text} for k, text in enumerate(passages)]
        jsonl(corpus / "docs-0.jsonl.gz", rows[:2])
        jsonl(corpus / "docs-1.jsonl.gz", rows[2:])
        lines(root / release / "topics" / f"topics.{release}-dev.tsv", ("9#0", query))
        qrels = root / release / "qrels" / f"qrels.{release}-dev.tsv"
        lines(qrels, ("9#0", "Q0", "7#0", 1), ("9#0", "Q0", "7#1", 0))


def mldr(root: Path) -> None:
    """Two languages; a test query with its positive passage inside, and a train query with negatives."""
    for language, word in (("de", "Apfel"), ("ja", "赤いりんご")):
        folder = root / f"mldr-v1.0-{language}"
        documents = [{"docid": f"doc-{language}-{k}", "text": f"{word} {k} " + "lang " * 50} for k in range(3)]
        jsonl(folder / "corpus.jsonl.gz", documents)
        asked = {"query_id": f"q-{language}-1", "query": f"{word} 1", "positive_passages": documents[1:2]}
        jsonl(folder / "test.jsonl.gz", [{**asked, "negative_passages": []}])
        jsonl(folder / "train.jsonl.gz", [{**asked, "query_id": f"q-{language}-2", "negative_passages": documents[:1]}])


def mkqa(root: Path) -> None:
    """Two languages over the same English passages; the third question has no answer among them."""
    jsonl(
        root / "nq" / "corpus.jsonl",
        [
            {"_id": "doc0", "title": "Volvo", "text": "Volvo Cars is a maker of luxury vehicles in Göteborg."},
            {"_id": "doc1", "title": "Saab", "text": "Saab made cars – and planes – in Linköping."},
            {"_id": "doc2", "title": "Apple", "text": "An apple is a red fruit. The volvox is an alga."},
            *(
                {"_id": f"doc{k}", "title": "Cars", "text": f"Cars of the kind {k}, not red ones."}
                for k in range(3, 15)
            ),
        ],
    )
    questions = {
        "de": ["welche Cars maker kommen aus Göteborg", "red fruit cars", "who made cars in volvox"],
        "ja": ["Volvo の cars", "red fruit は", "cars planes volvox"],
    }
    answers = [["Volvo", "Volvo Cars"], ["APPLE"], ["Ford"]]
    for language, asked in questions.items():
        rows = [
            {"id": str(k), "question": q, "answers": a} for k, (q, a) in enumerate(zip(asked, answers, strict=True))
        ]
        jsonl(root / "qa_data" / f"{language}.jsonl", rows)


def vidore_v1(root: Path) -> None:
    """Two datasets of pages: one page is duplicated, one question too, and one page has no question."""
    rows = [
        {"query": "what is red", "image": image(RED), "image_filename": "images/a.jpg", "answer": "x", "page": "1"},
        {
            "query": "what is green",
            "image": image(GREEN),
            "image_filename": "images/b.jpg",
            "answer": None,
            "page": "2",
        },
        {
            "query": "what else is red",
            "image": image(RED),
            "image_filename": "images/a.jpg",
            "answer": "x",
            "page": "1",
        },
        {"query": None, "image": image(BLUE), "image_filename": "images/c.jpg", "answer": None, "page": "3"},
        {"query": "what is red", "image": image(GREY), "image_filename": "images/d.jpg", "answer": "x", "page": "4"},
    ]
    parquet(root / "docvqa_test_subsampled" / "data" / "test-00000-of-00001.parquet", rows)
    parquet(root / "tatdqa_test" / "data" / "test-00000-of-00002.parquet", rows[:1])
    parquet(root / "tatdqa_test" / "data" / "test-00001-of-00002.parquet", rows[1:2])


def vidore_v2(root: Path) -> None:
    """A dataset in two languages, ids with hyphens, no page texts."""
    folder = root / "esg_reports_v2"
    pages = [{"corpus-id": k, "image": image(one), "doc-id": "report"} for k, one in enumerate((RED, GREEN, BLUE))]
    parquet(folder / "corpus" / "test-00000-of-00001.parquet", pages)
    queries = [("what is red", "english"), ("qu'est-ce qui est rouge", "french"), ("what is green", "english")]
    rows = [{"query-id": k, "query": query, "language": language} for k, (query, language) in enumerate(queries)]
    parquet(folder / "queries" / "test-00000-of-00001.parquet", rows)
    judged = [(0, 0, 1), (1, 0, 1), (2, 1, 2), (2, 2, 1)]
    rows = [{"query-id": q, "corpus-id": d, "answer": "", "score": score} for q, d, score in judged]
    parquet(folder / "qrels" / "test-00000-of-00001.parquet", rows)


def vidore_v3(root: Path) -> None:
    """A dataset with page texts, ids with underscores, graded judgements."""
    folder = root / "vidore_v3_energy"
    pages = [(RED, "The red page on coal."), (GREEN, "Wind and sun."), (BLUE, "Water power.")]
    rows: Rows = [
        {"corpus_id": k, "image": image(content), "doc_id": "energy", "markdown": text, "page_number_in_doc": k}
        for k, (content, text) in enumerate(pages)
    ]
    parquet(folder / "corpus" / "test-00000-of-00001.parquet", rows)
    queries = [("coal on the red page", "english"), ("wind and water", "english")]
    rows = [
        {
            "query_id": k,
            "query": query,
            "language": language,
            "query_types": ["open-ended"],
            "raw_answers": ["a"],
            "answer": "a",
        }
        for k, (query, language) in enumerate(queries)
    ]
    parquet(folder / "queries" / "test-00000-of-00001.parquet", rows)
    judged = [(0, 0, 2), (1, 1, 1), (1, 2, 2)]
    rows = [{"query_id": q, "corpus_id": d, "score": score, "content_type": ["Text"]} for q, d, score in judged]
    parquet(folder / "qrels" / "test-00000-of-00001.parquet", rows)


#: What each of the eight tasks asks and wants, as M-BEIR's files write it, with the number of its dataset.
MBEIR = {
    "visualnews_task0": (0, "text", "image"),
    "webqa_task1": (2, "text", "text"),
    "edis_task2": (3, "text", "image,text"),
    "mscoco_task3": (9, "image", "text"),
    "nights_task4": (4, "image", "image"),
    "oven_task6": (5, "image,text", "text"),
    "cirr_task7": (8, "image,text", "image"),
    "infoseek_task8": (6, "image,text", "image,text"),
}


def mbeir(root: Path) -> None:
    """All eight tasks, one query and seven candidates each."""
    images = root / "mbeir_images"
    images.mkdir(parents=True)
    shades = {"pink": picture(250, 150, 170), "brown": picture(110, 70, 30), "black": picture(0, 0, 0)}
    colours = {"red": RED, "green": GREEN, "blue": BLUE, "grey": GREY, **shades}
    for name, content in colours.items():
        (images / f"{name}.jpg").write_bytes(content)
    prompts = []
    for name, (number, asks, wants) in MBEIR.items():
        prompts.append((asks, wants, name.split("_")[0], number, "find what matches", "Give me the match.", "", ""))
        pool = f"mbeir_{name}_test_cand_pool.jsonl" if name.startswith("mscoco") else f"mbeir_{name}_cand_pool.jsonl"
        jsonl(
            root / "cand_pool" / "local" / pool,
            [
                {
                    "did": f"{number}:{k}",
                    "txt": f'"a {colour} thing"' if "text" in wants else None,
                    "img_path": f"mbeir_images/{colour}.jpg" if "image" in wants else None,
                    "modality": wants,
                    "src_content": None,
                }
                for k, colour in enumerate(colours)
            ],
        )
        jsonl(
            root / "query" / "test" / f"mbeir_{name}_test.jsonl",
            [
                {
                    "qid": f"{number}:77",
                    "query_txt": "green things" if "text" in asks else None,
                    "query_img_path": "mbeir_images/green.jpg" if "image" in asks else None,
                    "query_modality": asks,
                    "query_src_content": None,
                    "pos_cand_list": [f"{number}:1"],
                    "neg_cand_list": [],
                }
            ],
        )
        task = name.rpartition("task")[2]
        qrels = root / "qrels" / "test" / f"mbeir_{name}_test_qrels.txt"
        lines(qrels, (f"{number}:77", 0, f"{number}:1", 1, task), between=" ")
    head = ("query_modality", "cand_modality", "dataset_name", "dataset_id", *(f"prompt_{k}" for k in range(1, 5)))
    lines(root / "instructions" / "query_instructions.tsv", head, *prompts)


def winoground(root: Path) -> None:
    """Two examples, the images in an archive."""
    examples = [("red on green", "green on red"), ("blue under red", "red under blue")]
    jsonl(
        root / "data" / "examples.jsonl",
        [
            {
                "id": k,
                "image_0": f"ex_{k}_img_0",
                "image_1": f"ex_{k}_img_1",
                "caption_0": captions[0],
                "caption_1": captions[1],
                "tag": "Object",
                "secondary_tag": "",
                "num_main_preds": 1,
                "collapsed_tag": "Object",
            }
            for k, captions in enumerate(examples)
        ],
    )
    pictures = ((RED, GREEN), (BLUE, GREY))
    with zipfile.ZipFile(root / "data" / "images.zip", "w") as packed:
        for k, pair in enumerate(pictures):
            for side, content in enumerate(pair):
                packed.writestr(f"images/ex_{k}_img_{side}.png", content)


BUILDERS = {
    layout.__name__: layout
    for layout in (beir, coir, miracl, mldr, mkqa, vidore_v1, vidore_v2, vidore_v3, mbeir, winoground)
}


@pytest.fixture
def publish(tmp_path: Path) -> Callable[[str], Path]:
    """`publish(layout)`: the folder into which the benchmark in miniature was downloaded."""

    def make(layout: str) -> Path:
        root = tmp_path / "published"
        BUILDERS[layout](root)
        return root

    return make


@dataclass(frozen=True)
class Lake:
    """What an ingestion wrote, and how to look at it."""

    done: BenchmarkLake
    folder: Path

    def table(self, name: str) -> Rows:
        """A table's rows in the order of its files."""
        parts = sorted((self.folder / name).glob("*.parquet"))
        return [row for part in parts for row in pq.read_table(part).to_pylist()]

    def by_id(self, name: str) -> dict[str, dict[str, Any]]:
        """Documents or queries by id, without what is null."""
        key = "doc_id" if name == "documents" else "query_id"
        return {row[key]: {k: v for k, v in row.items() if v is not None and k != key} for row in self.table(name)}

    def candidates(self) -> dict[str, list[str]]:
        """Document ids of each query, in their order."""
        result: dict[str, list[str]] = {}
        for row in self.table("candidates"):
            result.setdefault(row["query_id"], []).append(row["doc_id"])
        return result

    def qrels(self) -> dict[tuple[str, str], int]:
        """Relevance by query and document."""
        return {(row["query_id"], row["doc_id"]): row["relevance"] for row in self.table("qrels")}

    def rejects(self, name: str) -> Rows:
        """The rejects listed for a table."""
        path = self.folder / "rejects" / f"{name}.jsonl"
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


@pytest.fixture
def ingested(tmp_path: Path) -> Callable[..., Lake]:
    """`ingested(folder, **options)`: the lake of a benchmark, its layout recognised unless it is named."""

    def run(folder: Path, follow_links: bool = False, **options: Any) -> Lake:
        output = tmp_path / "lake"
        done = ingest_benchmark(Storage(), str(folder), str(output), LayoutOptions(**options), follow_links)
        return Lake(done, output)

    return run


@pytest.fixture
def unpack_winoground(tmp_path: Path) -> Callable[[Path, str], Path]:
    """The same examples with the images unpacked, or all in one Parquet file as in later revisions."""

    def make(folder: Path, kind: str) -> Path:
        root = tmp_path / kind
        with zipfile.ZipFile(folder / "data" / "images.zip") as packed:
            pictures = {Path(name).stem: packed.read(name) for name in packed.namelist()}
        rows = [json.loads(line) for line in (folder / "data" / "examples.jsonl").read_text().splitlines()]
        if kind == "parquet":
            sides = ("image_0", "image_1")
            rows = [row | {side: image(pictures[row[side]], f"{row[side]}.png") for side in sides} for row in rows]
            parquet(root / "data" / "test-00000-of-00001.parquet", rows)
            return root
        jsonl(root / "examples.jsonl", rows)
        (root / "images").mkdir()
        for name, content in pictures.items():
            (root / "images" / f"{name}.png").write_bytes(content)
        return root

    return make


@pytest.fixture(scope="session")
def builders() -> dict[str, Callable[[Path], None]]:
    """What writes each benchmark in miniature into a folder."""
    return BUILDERS
