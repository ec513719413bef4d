"""Weights of a dynamically quantised ONNX file as float32, under the names that transformers gives them.

ONNX is protobuf, of which four messages are read: ModelProto, GraphProto, NodeProto and TensorProto (field numbers:
onnx/onnx, `onnx/onnx.proto`). The library would bring 40 MB for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lakerank.errors import CheckpointError

#: Suffixes of what onnxruntime's `quantize_dynamic` makes of a tensor.
_QUANTIZED, _SCALE, _ZERO_POINT = "_quantized", "_scale", "_zero_point"

_DTYPES: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 2: np.dtype("u1"), 3: np.dtype("i1"), 7: np.dtype("<i8")}


def read_dequantized(file: Path) -> dict[str, np.ndarray]:
    """All weights in float32 by transformers' names; those of linear layers are (out, in), as torch stores them.

    Raises CheckpointError: it is no such file.
    """
    try:
        return _dequantized(memoryview(file.read_bytes()))
    except (IndexError, KeyError, ValueError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file}: not a dynamically quantised ONNX file ({error!r})") from error


def _dequantized(model: memoryview) -> dict[str, np.ndarray]:
    graph = _contents(model, 7)[0]
    tensors = dict(_tensor(tensor) for tensor in _contents(graph, 5))
    modules = dict(name for node in _contents(graph, 1) for name in _products(node))
    weights = {}
    for name, stored in tensors.items():
        if name.endswith((_SCALE, _ZERO_POINT)):
            continue
        if not name.endswith(_QUANTIZED):
            weights[name] = stored
            continue
        base = name.removesuffix(_QUANTIZED)
        values = (stored.astype(np.int32) - tensors[base + _ZERO_POINT]).astype(np.float32) * tensors[base + _SCALE]
        weights[modules.get(name, base)] = np.ascontiguousarray(values.T if name in modules else values)
    return weights


def _products(node: memoryview) -> Iterator[tuple[str, str]]:
    """The weight that a node multiplies by, as the file names it and by its module; nothing for other nodes."""
    texts = {number: [bytes(value).decode() for value in _contents(node, number)] for number in (1, 3, 4)}
    if texts[4] == ["MatMulInteger"]:
        module = texts[3][0].removeprefix("/").rpartition("/")[0].replace("/", ".")
        yield texts[1][1], f"{module}.weight"


def _tensor(tensor: memoryview) -> tuple[str, np.ndarray]:
    """A tensor's name and values."""
    (dtype,) = [_DTYPES[value] for number, value in _fields(tensor) if number == 2 and isinstance(value, int)]
    shape = [value for number, value in _fields(tensor) if number == 1 and isinstance(value, int)]
    if packed := _contents(tensor, 5):  # a zero point: one varint
        values: np.ndarray = np.array([_varint(packed[0], 0)[0]], dtype=np.int32)
    else:
        values = np.frombuffer(bytes((_contents(tensor, 9) or _contents(tensor, 4))[0]), dtype=dtype)
    return bytes(_contents(tensor, 8)[0]).decode(), values.reshape(shape)


def _contents(message: memoryview, number: int) -> list[memoryview]:
    """The values of one field: texts, messages, packed numbers."""
    return [value for field, value in _fields(message) if field == number and not isinstance(value, int)]


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field numbers and values of a protobuf message, in order. Raises IndexError, ValueError: it is none."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        size, at = _varint(message, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
        if at + size > len(message):
            raise ValueError("truncated")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where the next value begins."""
    value = shift = 0
    while True:
        byte = message[at]
        at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
        if byte < 128:
            return value, at
