"""Winoground: two captions of the same words and two images, to be matched both ways.

Source: the card and the files of the hub's `facebook/winoground`: examples of `{"id", "caption_0", "caption_1",
"image_0", "image_1"}`, images named without `.png`, or inside the rows where the file is Parquet. A reranker reads one
side as the query, so each pair is scored both ways: captions are ranked for an image, which gives the text score of
arXiv:2204.03162, and images for a caption, which gives the image score.
"""

from __future__ import annotations

import itertools
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, BinaryIO, cast

from lakerank.errors import StorageError
from lakerank.ingest.lines import read_each, record_id, record_text
from lakerank.ingest.rejects import SourceError, SourceFault, SourceReject
from lakerank.ingest.tables import ContentRow
from lakerank.records import Candidate, Qrel
from lakerank_datasets.layouts.benchmark import (
    ContentRows,
    DocumentColumns,
    DocumentFilter,
    Layout,
    Part,
    Pool,
    Qrels,
    QueryColumns,
    every_id,
)
from lakerank_datasets.layouts.benchmark_folder import IMAGE_ROWS, MAX_BYTES, BenchmarkFolder, image_bytes

_SIDES = (0, 1)
_CAPTIONS = ("caption_0", "caption_1")
_IMAGES = ("image_0", "image_1")
_ROOTS = ("data/", "")
_TASKS = {"c": "caption→image", "i": "image→caption"}

#: A caption (`c`) or an image (`i`), its side, and the example that it is of.
Item = tuple[str, int, Mapping[str, Any]]

#: Reads an example's image by the name of its field.
ReadImage = Callable[[Mapping[str, Any], str], bytes]


def _datasets(folder: BenchmarkFolder, _split: str) -> list[tuple[()]]:
    """The whole of it, once: there is only one split, `test`."""
    return [()] if _files(folder) else []


def _parts(folder: BenchmarkFolder, _split: str) -> list[Part]:
    if not _files(folder)[0].endswith(".parquet") and _archive(folder) is None and not _image_folder(folder):
        raise folder.missing("data/images.zip", "data/images/")
    columns = QueryColumns("winoground", "winoground")
    documents = partial(_rows, folder, lambda kind: DocumentColumns("winoground"))
    queries = partial(_rows, folder, lambda kind: columns._replace(task=_TASKS[kind]), every_id, True)

    def judgements() -> Qrels:
        return (Qrel(query_id, doc_id, match) for query_id, doc_id, match in _pairs(folder))

    def candidates() -> Iterator[Candidate]:
        return (Candidate(query_id, doc_id) for query_id, doc_id, _ in _pairs(folder))

    pool = Pool("winoground", documents)
    return [Part("winoground", pool, columns, queries, judgements, candidates=candidates)]


def _rows(
    folder: BenchmarkFolder,
    columns: Callable[[str], QueryColumns | DocumentColumns],
    is_included: DocumentFilter,
    images: bool,
) -> ContentRows:
    """Captions and images of each example, as documents or as queries."""
    with _images(folder) as read_image:

        def row(_line: int, item: Item) -> Iterator[ContentRow]:
            kind, side, example = item
            item_id = f"{record_id(example, 'id')}:{kind}{side}"
            if is_included(item_id):
                caption = record_text(example, f"caption_{side}") if kind == "c" else None
                image = read_image(example, f"image_{side}") if kind == "i" and images else None
                yield ContentRow(item_id, caption, image, columns(kind))

        for path in _files(folder):
            yield from read_each(path, _items(folder, path, images), row)


def _pairs(folder: BenchmarkFolder) -> Iterator[tuple[str, str, int]]:
    """Query, document, and whether they belong together, of everything that is compared."""
    for path in _files(folder):
        for item in _items(folder, path, images=False):
            if not isinstance(item, SourceReject):
                kind, side, example = item[1]
                name, answers = record_id(example, "id"), "i" if kind == "c" else "c"
                yield from ((f"{name}:{kind}{side}", f"{name}:{answers}{at}", int(at == side)) for at in _SIDES)


def _items(folder: BenchmarkFolder, path: str, images: bool) -> Iterator[tuple[int, Item] | SourceReject]:
    """Line and item of both captions and both images of each example that has an id and captions, or a reject."""

    def items(line: int, example: Mapping[str, Any]) -> Iterator[tuple[int, Item]]:
        if any(record_text(example, name) is None for name in _CAPTIONS):
            raise SourceError(SourceFault.FIELD_MISSING, "no 'caption_0' and 'caption_1'")
        record_id(example, "id")
        yield from ((line, (kind, side, example)) for kind, side in itertools.product(_TASKS, _SIDES))

    return folder.read([path], items, ("id", *_CAPTIONS, *(_IMAGES if images else ())), IMAGE_ROWS)


def _files(folder: BenchmarkFolder) -> list[str]:
    """The file of examples, or the Parquet files of later revisions."""
    if (path := folder.find(*(f"{root}examples.jsonl" for root in _ROOTS))) is not None:
        return [path]
    shards = folder.parquet("data", "test")
    return shards if shards and {"caption_0", "image_0"} <= set(folder.columns(shards[0])) else []


def _archive(folder: BenchmarkFolder) -> str | None:
    return folder.find(*(f"{root}images.zip" for root in _ROOTS))


def _image_folder(folder: BenchmarkFolder) -> str | None:
    return next((f"{root}images/" for root in _ROOTS if "images" in folder.folders(root.rstrip("/"))), None)


@contextmanager
def _images(folder: BenchmarkFolder) -> Iterator[ReadImage]:
    """Reads images out of the examples' rows, or by name from the unpacked folder, or from the archive."""
    unpacked, archive = _image_folder(folder), _archive(folder)
    if _files(folder)[0].endswith(".parquet"):
        yield image_bytes
        return
    if unpacked is not None or archive is None:
        yield lambda fields, name: folder.image(f"{unpacked}{_file_name(fields, name)}")
        return
    with folder.open(archive) as stream:
        try:
            packed = zipfile.ZipFile(cast("BinaryIO", stream))
        except zipfile.BadZipFile as error:
            raise StorageError(f"{archive}: not a whole zip archive; fetch it again") from error
        members = {member.filename.rpartition("/")[2]: member for member in packed.infolist()}

        def read(fields: Mapping[str, Any], name: str) -> bytes:
            file = _file_name(fields, name)
            member = members.get(file)
            if member is None:
                raise SourceError(SourceFault.IMAGE_NOT_FOUND, f"no {file} in {archive}")
            if member.file_size > MAX_BYTES:
                raise SourceError(SourceFault.FILE_TOO_LARGE, f"the image has {member.file_size} bytes")
            try:
                return packed.read(member)
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise SourceError(SourceFault.IMAGE_NOT_FOUND, f"{file} is damaged in {archive}") from error

        yield read


def _file_name(fields: Mapping[str, Any], name: str) -> str:
    return f"{record_id(fields, name).removesuffix('.png')}.png"


LAYOUT = Layout(
    expects="data/examples.jsonl and data/images.zip (or images/), or data/test-*.parquet",
    split="test",
    datasets=_datasets,
    parts=_parts,
)
