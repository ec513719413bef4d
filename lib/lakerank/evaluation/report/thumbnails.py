"""Small pictures of lake images, as data URIs that a page can hold."""

from __future__ import annotations

import base64
import io

from PIL import Image, ImageOps

from lakerank.limits import Limits
from lakerank.model.inputs import RejectedInput
from lakerank.model.preprocess.images import open_header, to_rgb

#: The longer side, in pixels.
SIDE = 96

#: A thumbnail is not worth decoding more than this: a larger image is named instead of shown.
LIMITS = Limits(max_source_pixels=40_000_000, max_source_bytes=64 * 2**20)


def thumbnail(image: bytes) -> str | None:
    """A JPEG of at most `SIDE` × `SIDE` pixels as a data URI; None when the image is bad or over `LIMITS`.

    Every thumbnail is encoded anew, so no byte of the stored image, and nothing hidden in it, reaches the page.
    """
    buffer = io.BytesIO()
    try:
        picture = open_header(image, LIMITS)
        picture.draft("RGB", (2 * SIDE, 2 * SIDE))  # JPEG alone can be decoded at a fraction of its size
        small = to_rgb(ImageOps.exif_transpose(picture))
        small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        small.save(buffer, format="JPEG", quality=85)
    except (RejectedInput, Exception):  # a damaged file makes decoders raise anything, and a page must not depend on it
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
