"""What a forecast of device-hours needs of this machine: cost tokens a second, and bytes fetched a second."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lakerank.cost import Sizing, input_cost
from lakerank.lake.blobs import BlobRef, fetch
from lakerank.lake.storage import Storage
from lakerank.limits import IMAGE_FORMATS, Limits
from lakerank.records import Document, DocumentGroup, Query

#: Rows of a row group: what a lake of page images should have.
_ROWS = 8

#: So many bytes are fetched, in so many rows at most: opening the file must not count.
_FETCHED_BYTES, _FETCHED_ROWS = 64 * 2**20, 4096


def cost_tokens(groups: Sequence[DocumentGroup], limits: Limits) -> int:
    """Document-major cost of groups, in `lakerank.cost`'s tokens, from sizes alone."""
    queries = [query for group in groups for query in group.queries]
    documents = [group.document for group in groups]
    sides = ((documents, limits.max_length - limits.max_query_length), (queries, limits.max_query_length))
    return sum(_cost(items, Sizing(limits.min_pixels, limits.max_pixels, most)) for items, most in sides)


def _cost(items: Sequence[Query | Document], sizing: Sizing) -> int:
    sizes = [
        (0, 0) if item.image is None else Image.open(io.BytesIO(item.image), formats=IMAGE_FORMATS).size
        for item in items
    ]
    text = np.array([len((item.text or "").encode()) for item in items], np.int64)
    width, height = (np.array([size[axis] for size in sizes], np.int64) for axis in (0, 1))
    return int(input_cost(text, width, height, sizing).sum())


def fetch_rate(documents: Sequence[Document]) -> float:
    """Useful bytes a second that one thread fetches from a table on this machine's disk that repeats `documents`."""
    once = sum(len((document.text or "").encode()) + len(document.image or b"") for document in documents)
    times = max(1, min(_FETCHED_BYTES // max(1, once), _FETCHED_ROWS // len(documents)))
    documents = list(documents) * times
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "documents.parquet"
        columns = {
            "doc_id": [document.doc_id for document in documents],
            "text": pa.array([document.text for document in documents], pa.string()),
            "image": pa.array([document.image for document in documents], pa.binary()),
        }
        pq.write_table(pa.table(columns), file, row_group_size=_ROWS, compression="zstd")
        places = [BlobRef(str(file), place // _ROWS, place % _ROWS) for place in range(len(documents))]
        started = time.perf_counter()
        size = sum(blob.nbytes for blob in fetch(Storage(), places, "doc_id"))
        return size / (time.perf_counter() - started)
