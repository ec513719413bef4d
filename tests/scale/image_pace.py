"""Page images that one thread prepares a second: decoded, resized and cut; by resolution, colours and `scoring.resize`.

PYTHONPATH=lib:tests python tests/scale/image_pace.py
"""

from __future__ import annotations

import io
import time
from statistics import median

import numpy as np
import torch
from PIL import Image

from lakerank.limits import Limits
from lakerank.model.preprocess.images import PatchShape, load_patches, load_pixels
from lakerank_benchmark.pages import drawn_pages, jpeg

#: Dots an inch of an A4 page, and its sides.
SIZES = {90: (672, 896), 150: (1240, 1754), 200: (1654, 2339), 300: (2480, 3508)}


def main() -> None:
    """Print a line for each resolution."""
    torch.set_num_threads(1)
    shape, ways = PatchShape(), {name: Limits(resize=name) for name in ("pillow", "torch")}
    for dots, size in SIZES.items():
        (colour,) = drawn_pages(1, size=size)
        grey = jpeg(Image.open(io.BytesIO(colour)).convert("L"))
        paces = [
            f"{kind} {name} {pace(page, limits, shape):6.1f}"
            for kind, page in (("colour", colour), ("grey", grey))
            for name, limits in ways.items()
        ]
        pixels = [load_pixels(colour, limits, shape).astype(int) for limits in ways.values()]
        apart = np.abs(pixels[0] - pixels[1])
        print(f"{dots:4d} dots an inch, {len(colour) // 1024:5d} KiB: pages/s", ", ".join(paces),
              f"; levels apart: {apart.mean():.3f} on average, {apart.max()} at most")  # fmt: skip


def pace(page: bytes, limits: Limits, shape: PatchShape) -> float:
    """Pages a second of processor time: the median of as many as three seconds have time for."""
    seconds: list[float] = []
    load_patches(page, limits, shape)
    while sum(seconds) < 3:
        started = time.thread_time()
        load_patches(page, limits, shape)
        seconds.append(time.thread_time() - started)
    return 1 / median(seconds)


if __name__ == "__main__":
    main()
