"""Tiny lakes to train on in seconds: one with topics, and one of the contract's columns alone."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

COLOURS = ("red", "green", "blue", "black", "orange", "purple", "grey", "pink", "brown", "teal", "navy", "olive")
WORDS = {"en": "{} square", "de": "Quadrat in {}", "hi": "{} वर्ग"}


def picture(colour: str, side: int, size: tuple[int, int] = (56, 56)) -> bytes:
    stream = io.BytesIO()
    image = Image.new("RGB", size, "white")
    image.paste(colour, (4, 4, side, side))
    image.save(stream, "PNG")
    return stream.getvalue()


def write_colour_lake(folder: Path) -> Path:
    """Twelve topics, each with two pictures and a text in three languages on either side."""
    rows: list[dict[str, Any]] = []
    for colour in COLOURS:
        rows += [
            {"id": f"{colour}.{side}", "image": picture(colour, side), "topic": colour, "kind": "picture"}
            for side in (40, 52)
        ]
        rows += [
            {
                "id": f"{colour}.{language}",
                "text": words.format(colour),
                "topic": colour,
                "kind": "name",
                "language": language,
            }
            for language, words in WORDS.items()
        ]
    for table, id_name in (("documents", "doc_id"), ("queries", "query_id")):
        columns = {id_name: [row["id"] for row in rows]}
        for name, kind in (
            ("text", pa.string()),
            ("image", pa.binary()),
            ("topic", None),
            ("kind", None),
            ("language", None),
        ):
            columns[name] = pa.array([row.get(name) for row in rows], kind or pa.string())
        pq.write_table(pa.table(columns), folder / f"{table}.parquet")
    pairs = [(a["id"], b["id"]) for a in rows for b in rows if a["topic"] == b["topic"] and a["id"] != b["id"]]
    qrels = {
        "query_id": [a for a, _ in pairs],
        "doc_id": [b for _, b in pairs],
        "relevance": np.full(len(pairs), 2, np.int32),
    }
    pq.write_table(pa.table(qrels), folder / "qrels.parquet")
    return folder


def write_plain_lake(folder: Path) -> dict[str, str]:
    """A lake of the contract's columns alone: twelve queries, pictures of three sizes, grades 1 and 2, a broken row."""
    sizes = {colour: ((56, 56), (84, 56), (30, 90))[index % 3] for index, colour in enumerate(COLOURS)}
    documents = [(f"{c}.picture", None, picture(c, 40, size)) for c, size in sizes.items()]
    documents += [(f"{c}.text", f"a {c} thing " * 40, None) for c in COLOURS]
    documents += [("broken", None, b"no picture"), ("empty", " ", None)]
    columns = list(zip(*documents, strict=True))
    table = {
        "doc_id": columns[0],
        "text": pa.array(columns[1], pa.string()),
        "image": pa.array(columns[2], pa.binary()),
    }
    pq.write_table(pa.table(table), folder / "documents.parquet")
    texts = pa.array([f"{c} square" for c in COLOURS])
    queries = {"query_id": [f"{c}.en" for c in COLOURS], "text": texts, "image": pa.nulls(12, pa.binary())}
    pq.write_table(pa.table(queries), folder / "queries.parquet")
    judged = [(f"{c}.en", f"{c}.{kind}", grade) for c in COLOURS for kind, grade in (("picture", 2), ("text", 1))]
    judged += [("red.en", "pink.text", 1), ("red.en", "broken", 2), ("red.en", "empty", 1), ("red.en", "navy.text", 0)]
    asked, answers, grades = zip(*judged, strict=True)
    table = {"query_id": asked, "doc_id": answers, "relevance": pa.array(grades, pa.int32())}
    pq.write_table(pa.table(table), folder / "qrels.parquet")
    return {name: str(folder / f"{name}.parquet") for name in ("documents", "queries", "qrels")}


def table_paths(folder: Path) -> dict[str, str]:
    """Documents, queries and qrels of a lake in a folder."""
    return {name: str(folder / f"{name}.parquet") for name in ("documents", "queries", "qrels")}


def write_config(folder: Path, values: dict[str, Any]) -> Path:
    """A training config in a folder, with its output beside it."""
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump({"output": str(folder / "out"), **values}), encoding="utf-8")
    return path
