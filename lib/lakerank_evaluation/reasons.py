"""Explanations as the report shows them, without colour: underlined text, images that are faded but for reasons."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import Any
from zlib import crc32

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from lakerank import schemas
from lakerank.lake.columns import decode_text
from lakerank.lake.ranked import ranked_lists, rows_by_id
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import read_table_file
from lakerank.model.preprocess.images import SHOWN_LIMITS, PatchShape, load_pixels, source_frames
from lakerank_evaluation.examples import Content, ListedDocument, contents_of, judgements_of
from lakerank_evaluation.inputs import Inputs

#: Explanations shown of images, and of texts; pixels of an image; parts named beside it.
_OF_A_KIND, _PIXELS, _NAMED = 3, 120_000, 3

#: The share of the heaviest part's weight from which a box is outlined.
_OUTLINED = 0.5


@dataclass(frozen=True, slots=True)
class Reason:
    """A pair's explanation. `marked`: its text in pieces, each with a grade from 0 to 3; `image`: a data URI."""

    query: Content
    listed: ListedDocument
    marked: Sequence[tuple[str, int]]
    image: str | None
    heaviest: Sequence[tuple[float, str, str]]


def shown_reasons(storage: Storage, inputs: Inputs) -> list[Reason]:
    """A few faithful explanations of images and of texts, if the run has any: drawn at random, the same each time."""
    best: dict[str, list[tuple[int, list[dict[str, Any]]]]] = {"box": [], "span": []}
    for name in sorted(storage.list_names(inputs.paths.explanations)):
        address = join(inputs.paths.explanations, name)
        rows = (
            row for *_, batch in read_table_file(storage, address, schemas.EXPLANATIONS) for row in batch.to_pylist()
        )
        for ids, of_pair in groupby(rows, itemgetter("query_id", "doc_id")):
            parts = [*of_pair]
            if parts[0]["faithful"] and len(parts) > 2:
                kind, place = parts[0]["kind"], crc32("\0".join(ids).encode())
                best[kind] = sorted([*best[kind], (place, parts)], key=itemgetter(0))[:_OF_A_KIND]
    chosen = [parts for kind in best.values() for _, parts in kind]
    asked, listed = ({parts[0][name] for parts in chosen} for name in ("query_id", "doc_id"))
    queries = contents_of(storage, inputs.tables.queries, schemas.QUERIES, asked)
    documents = contents_of(storage, inputs.tables.documents, schemas.DOCUMENTS, listed)
    lists = ranked_lists(storage, inputs.paths, asked)
    ranked = {(name, row.doc_id): row for name, rows in lists.items() for row in rows}
    judgements = judgements_of(storage, inputs, asked)
    texts: dict[str, str] = {}
    for row in rows_by_id(storage, inputs.tables.documents, schemas.DOCUMENTS, listed, ["text"]):
        with suppress(UnicodeDecodeError):
            texts.setdefault(row["doc_id"], decode_text(row["text"]) or "")
    reasons = []
    for parts in chosen:
        pair = parts[0]["query_id"], parts[0]["doc_id"]
        relevance = None if math.isnan(ranked[pair].relevance) else ranked[pair].relevance
        document = ListedDocument(documents[pair[1]], ranked[pair].rank, None, judgements.get(pair), relevance)
        reasons.append(_reason(parts, queries[pair[0]], document, texts.get(pair[1], "")))
    return reasons


def _reason(parts: Sequence[dict[str, Any]], query: Content, listed: ListedDocument, text: str) -> Reason:
    heaviest = sorted(parts, key=lambda part: -part["weight"])[:_NAMED]
    named = [(part["weight"], _name(part, text), part["query_words"] or "") for part in heaviest]
    boxes = [part for part in parts if part["image"] == 0]
    image = heat_map(listed.content.image, boxes) if boxes and listed.content.image else None
    return Reason(query, listed, [*_marked(parts, text)], image, named)


def _name(part: dict[str, Any], text: str) -> str:
    if part["kind"] == "span":
        return text[part["start"] : part["end"]]
    return f"{part['x0']:.0f}–{part['x1']:.0f} × {part['y0']:.0f}–{part['y1']:.0f}"


def _marked(parts: Sequence[dict[str, Any]], text: str) -> list[tuple[str, int]]:
    most, place, pieces = max(part["weight"] for part in parts), 0, []
    for part in (part for part in parts if part["kind"] == "span"):
        grade = round(3 * part["weight"] / most) if most else 0
        pieces += [(text[place : part["start"]], 0), (text[part["start"] : part["end"]], grade)]
        place = part["end"]
    return pieces


def heat_map(data: bytes, boxes: Sequence[dict[str, Any]]) -> str | None:
    """An image, paler where boxes weigh less, the heaviest outlined, as a data URI; None where it cannot be read."""
    try:
        width, height, orientation = next(source_frames(data, SHOWN_LIMITS))
        pixels = load_pixels(data, replace(SHOWN_LIMITS, max_pixels=_PIXELS), PatchShape())
    except Exception:  # what is shown must not depend on it
        return None
    scale, most = min(1.0, 1000 / max(width, height)), max(box["weight"] for box in boxes) or 1.0
    layers = [Image.new("L", (max(1, round(width * scale)), max(1, round(height * scale)))) for _ in range(2)]
    for box in boxes:
        corners = [box[name] * scale for name in ("x0", "y0", "x1", "y1")]
        ImageDraw.Draw(layers[0]).rectangle(corners, fill=round(255 * box["weight"] / most))
        if box["weight"] >= _OUTLINED * most:
            ImageDraw.Draw(layers[1]).rectangle(corners, outline=255, width=max(2, round(max(layers[1].size) / 80)))
    for layer in layers:
        layer.getexif()[0x0112] = orientation
    size = (pixels.shape[1], pixels.shape[0])
    seen, edge = (np.asarray(ImageOps.exif_transpose(layer).resize(size)) / 255 for layer in layers)
    clear = (0.2 + 0.8 * seen[..., None]) * pixels + 255 * (0.8 - 0.8 * seen[..., None])
    buffer = io.BytesIO()
    Image.fromarray((clear * (1 - edge[..., None])).astype(np.uint8)).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
