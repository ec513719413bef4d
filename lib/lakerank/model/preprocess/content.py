"""What a caller of the Python API may give as a query or a document, as records: strings, files, images, arrays."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageOps

from lakerank.limits import Limits
from lakerank.model.inputs import RejectedInput
from lakerank.model.preprocess.images import check_size
from lakerank.model.preprocess.pixels import to_rgb
from lakerank.records import Document, Query, RejectReason

Record = TypeVar("Record", Query, Document)

_IMAGE = "bytes of an encoded file, a pathlib.Path, a PIL image, or a uint8 array (H, W) or (H, W, 1, 3 or 4)"

#: Modes of PIL that a PNG file has, with 8 bits.
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA"})


def is_missing(value: object) -> bool:
    """Whether a value is a null as tables of Python have them: None, NaN, pandas' NA and NaT."""
    if isinstance(value, float | np.floating):
        return bool(np.isnan(value))
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def to_record(record: type[Record], value: object, where: str, limits: Limits) -> Record:
    """A query or a document: a string is its text, anything else its image; a mapping or a record may have both, and
    that of a query an instruction.

    A string is never a path or a URL: nothing is fetched. A path is an image file's.

    Raises:
        TypeError: names `where` and what is accepted.
        RejectedInput: an image's file cannot be read, or an image cannot be encoded.
    """
    text: object
    images: list[object]
    told: object = value.get("instruction") if isinstance(value, Mapping) else getattr(value, "instruction", None)
    if isinstance(value, record):
        item: Any = value
        identifier, text, images = getattr(item, "query_id" if record is Query else "doc_id"), item.text, [*item.images]
    elif isinstance(value, Mapping):
        identifier, text, images = _of_mapping(record, value, where)
    elif isinstance(value, str):
        identifier, text, images = "", value, []
    else:
        accepted = f"a string (its text), an image ({_IMAGE}), a mapping with text or image, or a {record.__name__}"
        identifier, text, images = "", None, [value]
        if is_missing(value) or not isinstance(value, _IMAGE_TYPES):
            raise TypeError(f"{where} is {_kind(value)}; expected {accepted}")
    for name, given in (("text", text), ("instruction", told)):
        if not isinstance(given, str) and given is not None:
            advice = "an empty one is None" if is_missing(given) else "images go under image"
            raise TypeError(f"{where}: {name} is {_kind(given)}; expected a string ({advice})")
    encoded = tuple(encoded_image(image, where, limits) for image in images)
    content: dict[str, Any] = {"text": text, "images": encoded}
    if record is Query:
        content = {"text": text, "image": next(iter(encoded), None), "instruction": told}
    return record(identifier, **content)


def _of_mapping(record: type[Record], value: Mapping[str, Any], where: str) -> tuple[str, object, list[object]]:
    """Id, text and images of a mapping. Raises TypeError: it has other keys, or image and images."""
    identifier, *names = (field.name for field in fields(record))
    if unknown := sorted(map(str, value.keys() - {identifier, *names})):
        raise TypeError(f"{where}: unknown key {unknown[0]!r}; expected {', '.join(names)} and {identifier}")
    image, images = value.get("image"), value.get("images")
    if image is not None and images is not None:
        raise TypeError(f"{where}: image and images; give one of the two")
    several = [] if images is None else list_of(images, f"{where}: images")
    return value.get(identifier, ""), value.get("text"), several if image is None else [image]


def encoded_image(value: object, where: str, limits: Limits) -> bytes:
    """The bytes of an image's file; pixels are encoded without loss.

    Raises:
        TypeError: names `where` and what is accepted.
        RejectedInput: the file cannot be read, or the image is damaged, has no pixels or too many.
    """
    if isinstance(value, bytes):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, Mapping) and "bytes" in value:  # as Hugging Face's datasets keep images
        return encoded_image(value["bytes"], where, limits)
    if isinstance(value, str):
        raise TypeError(f"{where}: image is a string, which is neither opened nor fetched; expected {_IMAGE}")
    if isinstance(value, os.PathLike):
        return _read(Path(os.fsdecode(value)), limits)
    if isinstance(value, Image.Image):
        return _png(value, limits)
    if isinstance(value, np.ndarray):
        channels = value.shape[2:]
        if value.dtype != np.uint8 or value.ndim not in (2, 3) or channels not in ((), (1,), (3,), (4,)):
            raise TypeError(f"{where}: image is an array {value.shape} of {value.dtype}; expected {_IMAGE}")
        check_size(value.shape[1], value.shape[0], limits)
        return _png(Image.fromarray(value[:, :, 0] if channels == (1,) else value), limits)
    raise TypeError(f"{where}: image is {_kind(value)}; expected {_IMAGE}")


_IMAGE_TYPES = (bytes, bytearray, memoryview, os.PathLike, Image.Image, np.ndarray)


def _kind(value: object) -> str:
    """A value's type for a message; never the value, which may be a text."""
    if isinstance(value, float | np.floating) and np.isnan(value):
        return "NaN"
    return "None" if value is None else f"of type {type(value).__qualname__}"


def _read(file: Path, limits: Limits) -> bytes:
    """A file's bytes, and no more than show that it is too large."""
    try:
        with file.open("rb") as stream:
            return stream.read(limits.max_source_bytes + 1)
    except OSError as error:
        raise RejectedInput(RejectReason.IMAGE_UNDECODABLE, f"{file}: {error.strerror or error}") from error


def _png(image: Image.Image, limits: Limits) -> bytes:
    check_size(*image.size, limits)
    stream = io.BytesIO()
    try:
        # PNG files are saved without EXIF
        flat = ImageOps.exif_transpose(image) if image.mode in _PNG_MODES else to_rgb(image)
        flat.save(stream, "PNG", compress_level=1)
    except RejectedInput:
        raise
    except Exception as error:  # of a file that PIL opened and reads only now, or an image that was closed
        raise RejectedInput(RejectReason.IMAGE_UNDECODABLE, f"{type(error).__name__}: {error}"[:200]) from error
    return stream.getvalue()


def list_of(values: Any, what: str) -> list[Any]:
    """The elements of an iterable, a column of a table included. Raises TypeError: one value, or none to iterate."""
    single = isinstance(values, str | bytes | bytearray | memoryview | Mapping | os.PathLike | Image.Image)
    if isinstance(values, np.ndarray) and values.ndim == 3 and values.shape[2] in (3, 4):
        single = True  # (H, W, C) of one image, whose rows would be taken for images
    if single or isinstance(values, Query | Document) or not hasattr(values, "__iter__"):
        raise TypeError(f"{what}: expected a list, found one value {_kind(values)}; put it into a list")
    return values.to_pylist() if hasattr(values, "to_pylist") else list(values)
