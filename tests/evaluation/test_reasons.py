"""Explanations in the report: an image is clear where its boxes weigh most, a text has lines under what does."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from lakerank_evaluation.reasons import _marked, heat_map


def test_a_heavy_box_of_a_turned_image_is_clear_where_it_is_seen() -> None:
    image, exif, buffer = Image.new("RGB", (56, 84), "black"), Image.Exif(), io.BytesIO()
    exif[0x0112] = 6  # stored lying on its left side: seen 84 wide, its first row at the right edge
    image.save(buffer, "PNG", exif=exif)
    boxes = [
        {"x0": 0.0, "x1": 56.0, "y0": 0.0, "y1": 28.0, "weight": 0.9},
        {"x0": 0.0, "x1": 56.0, "y0": 28.0, "y1": 84.0, "weight": 0.1},
    ]
    drawn = heat_map(buffer.getvalue(), boxes)
    assert drawn is not None
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn.partition(",")[2]))).convert("L"))
    height, width = shown.shape
    assert width > height
    assert shown[:, -width // 4 :].mean() < 60 < 150 < shown[:, : width // 2].mean()
    assert heat_map(b"no image", boxes) is None


def test_a_text_is_marked_where_its_parts_are() -> None:
    spans = [(0, 3, 0.1), (4, 9, 0.9)]
    parts = [{"kind": "span", "start": a, "end": b, "weight": weight} for a, b, weight in spans]
    assert _marked(parts, "red apple") == [("", 0), ("red", 0), (" ", 0), ("apple", 3)]
