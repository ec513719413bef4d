"""Winoground: two captions of the same words and two images, to be matched both ways.

Source: the card and the files of the hub's `facebook/winoground`: `examples.jsonl` of `{"id", "caption_0", "caption_1",
"image_0", "image_1"}` with images named without `.png`, in `images.zip` or an unpacked `images/`, in `data/` or not; in
later revisions Parquet, `data/test-*.parquet`, with the images inside. arXiv:2204.03162 defines the three scores: with
s(caption, image), *text* asks s(c0,i0) > s(c1,i0) and s(c1,i1) > s(c0,i1), *image* s(c0,i0) > s(c0,i1) and
s(c1,i1) > s(c1,i0), *group* both. A reranker reads one side as the query, so each pair is scored both ways: captions
are ranked for an image (text score) and images for a caption (image score).
"""

from __future__ import annotations

import itertools
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

from lakerank.errors import StorageError
from lakerank.ingest.layouts.benchmark import (
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
from lakerank.ingest.layouts.benchmark_folder import IMAGE_ROWS, MAX_BYTES, BenchmarkFolder, image_bytes
from lakerank.ingest.lines import LineFault, read_each, record_id, record_text
from lakerank.ingest.tables import ContentRow, SourceFault, SourceReject
from lakerank.records import Candidate, Qrel

_SIDES = (0, 1)
_CAPTIONS = ("caption_0", "caption_1")
_IMAGES = ("image_0", "image_1")
_ROOTS = ("data/", "")
_TASKS = {"c": "caption→image", "i": "image→caption"}


@dataclass(frozen=True, slots=True)
class WinogroundExample:
    """Two captions and two images; images are read on demand and raise `LineFault` if they cannot be read."""

    id: str
    captions: Sequence[str]
    images: Sequence[Callable[[], bytes]]
    path: str
    line: int


def _datasets(folder: BenchmarkFolder, _split: str) -> list[tuple[()]]:
    """The whole of it, once: there is only one split, `test`."""
    return [()] if _jsonl(folder) is not None or _parquet(folder) else []


def _parts(folder: BenchmarkFolder, _split: str) -> list[Part]:
    if _jsonl(folder) is not None and _archive(folder) is None and not _image_folder(folder):
        raise folder.missing("data/images.zip", "data/images/")
    columns, examples = QueryColumns("winoground", "winoground"), partial(_read, folder)
    documents = partial(_items, examples, lambda kind: DocumentColumns("winoground"))
    queries = partial(_items, examples, lambda kind: columns._replace(task=_TASKS[kind]), every_id)

    def index() -> Iterator[tuple[str, str]]:
        whole = (example for example in examples() if isinstance(example, WinogroundExample))
        return ((f"{example.id}:{kind}{side}", "") for example in whole for kind in _TASKS for side in _SIDES)

    def judgements() -> Qrels:
        return (Qrel(query_id, doc_id, match) for query_id, doc_id, match in _pairs(examples))

    def candidates() -> Iterator[Candidate]:
        return (Candidate(query_id, doc_id) for query_id, doc_id, _ in _pairs(examples))

    pool = Pool("winoground", documents, index, is_searchable=False)
    return [Part("winoground", pool, columns, queries, judgements, candidates, is_text=False)]


Examples = Callable[[], Iterator[WinogroundExample | SourceReject]]


def _items(
    examples: Examples, columns: Callable[[str], QueryColumns | DocumentColumns], is_included: DocumentFilter
) -> ContentRows:
    """Captions and images of each example, as documents or as queries."""
    for example in examples():
        if isinstance(example, SourceReject):
            yield example
            continue
        for side, caption in enumerate(example.captions):
            item_id = f"{example.id}:c{side}"
            if is_included(item_id):
                yield ContentRow(item_id, caption, extra=columns("c"))
        for side, image in enumerate(example.images):
            item_id = f"{example.id}:i{side}"
            try:
                if is_included(item_id):
                    yield ContentRow(item_id, image=image(), extra=columns("i"))
            except LineFault as fault:
                yield SourceReject(example.path, fault.fault, str(fault), line=example.line)


def _pairs(examples: Examples) -> Iterator[tuple[str, str, int]]:
    """Query, document, and whether they belong together, of everything that is compared."""
    for example in examples():
        if isinstance(example, WinogroundExample):
            for query, document in (("c", "i"), ("i", "c")):
                for side, other in itertools.product(_SIDES, _SIDES):
                    yield f"{example.id}:{query}{side}", f"{example.id}:{document}{other}", int(side == other)


def _jsonl(folder: BenchmarkFolder) -> str | None:
    return folder.find(*(f"{root}examples.jsonl" for root in _ROOTS))


def _parquet(folder: BenchmarkFolder) -> list[str]:
    shards = folder.parquet("data", "test")
    return shards if shards and {"caption_0", "image_0"} <= set(folder.columns(shards[0])) else []


def _archive(folder: BenchmarkFolder) -> str | None:
    return folder.find(*(f"{root}images.zip" for root in _ROOTS))


def _image_folder(folder: BenchmarkFolder) -> str | None:
    return next((f"{root}images/" for root in _ROOTS if "images" in folder.folders(root.rstrip("/"))), None)


def _read(folder: BenchmarkFolder) -> Iterator[WinogroundExample | SourceReject]:
    path = _jsonl(folder)
    if path is None:
        for shard in _parquet(folder):
            rows = folder.rows(shard, ("id", *_CAPTIONS, *_IMAGES), IMAGE_ROWS)
            yield from read_each(shard, rows, partial(_example, shard, image_bytes))
        return
    with _images(folder) as image:
        yield from read_each(path, folder.records(path), partial(_example, path, image))


#: Reads an example's image by the name of its field.
ReadImage = Callable[[Mapping[str, Any], str], bytes]


def _example(path: str, image: ReadImage, line: int, fields: Mapping[str, Any]) -> Iterator[WinogroundExample]:
    captions = tuple(text for name in _CAPTIONS if (text := record_text(fields, name)) is not None)
    if len(captions) < 2:
        raise LineFault(SourceFault.FIELD_MISSING, "no 'caption_0' and 'caption_1'")
    yield WinogroundExample(
        record_id(fields, ("id",)), captions, [partial(image, fields, name) for name in _IMAGES], path, line
    )


@contextmanager
def _images(folder: BenchmarkFolder) -> Iterator[ReadImage]:
    """Reads images by name from the unpacked folder, or from the archive where there is none."""
    unpacked, archive = _image_folder(folder), _archive(folder)
    if unpacked is not None or archive is None:
        yield lambda fields, name: folder.image(f"{unpacked}{_file_name(fields, name)}")
        return
    with folder.seekable(archive) as stream, _zip_file(stream, archive) as packed:
        members = {member.filename.rpartition("/")[2]: member for member in packed.infolist()}

        def read(fields: Mapping[str, Any], name: str) -> bytes:
            file = _file_name(fields, name)
            member = members.get(file)
            if member is None:
                raise LineFault(SourceFault.IMAGE_NOT_FOUND, f"no {file} in {archive}")
            if member.file_size > MAX_BYTES:
                raise LineFault(SourceFault.FILE_TOO_LARGE, f"the image has {member.file_size} bytes")
            try:
                return packed.read(member)
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise LineFault(SourceFault.IMAGE_NOT_FOUND, f"{file} is damaged in {archive}") from error

        yield read


def _zip_file(stream: BinaryIO, archive: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(stream)
    except zipfile.BadZipFile as error:
        raise StorageError(f"{archive}: not a whole zip archive; fetch it again") from error


def _file_name(fields: Mapping[str, Any], name: str) -> str:
    return f"{record_id(fields, (name,)).removesuffix('.png')}.png"


LAYOUT = Layout(
    expects="data/examples.jsonl and data/images.zip (or images/), or data/test-*.parquet",
    example="data/examples.jsonl",
    split="test",
    datasets=_datasets,
    parts=_parts,
)
