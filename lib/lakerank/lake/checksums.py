"""Checksums of what we write: every byte of a Parquet or YAML file, the values of a JSON object; checked by readers.

Parquet's own checksums cover pages, neither their headers nor the footer. A file of ours has a *seal* besides, between
the last row group and the footer, where readers of Parquet do not look: the CRC-32 of each column chunk in file order;
that of the seal, the footer and what ends the file; how many chunks there are; and a magic number. Files without a seal
are of an earlier version or of other writers: of theirs the pages are checked.
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lakerank.credentials import redacted
from lakerank.errors import StorageError

#: Read at once from a file's end: footer and seal of most files.
TAIL_BYTES = 2**16

_MAGIC = b"\x93LKSEAL\x01"
_END = b"PAR1"
_WORDS = 8  # checksum and number of chunks, 4 bytes each
_JSON_KEY = "checksum"
_YAML_MARK = b"# checksum: "

#: What to do about a damaged file, by the folder that it is in.
_ADVICE = {
    "/explanations/": "delete the file and run the same command again: its pairs are then explained anew",
    "/index/": "delete the file and run the same command again: it is written anew",
    "/scores/": "delete the file and run again (with another --run-id, if this run was to reuse it): its pairs are "
    "then scored anew",
    "/states/": "it is deleted when it is read",
    "/ranked/": "restore the file from a copy, or publish another run: stored scores are reused",
    "/rejected/": "restore the file from a copy, or publish another run: stored scores are reused",
    "/current.json": "delete it, and run `lakerank rerank --run-id RUN` of the run that is to be current again",
    "/runs/": "restore the file from a copy, or use another --run-id: stored scores are reused",
}


class CorruptFile(StorageError):
    """A file is not what was written."""


def damage(uri: str, problem: str) -> str:
    """What to say of a file that is not what was written."""
    advice = next((advice for folder, advice in _ADVICE.items() if folder in uri), "restore the file from a copy")
    return f"{redacted(uri)}: damaged, {problem}; {advice}"


#: Column chunks in file order: first byte of each, end, and checksum.
_Chunks = tuple[Sequence[int], Sequence[int], Sequence[int]]


def sealed(content: bytes) -> bytes:
    """A Parquet file with its seal."""
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    first, end = _chunk_edges(pq.read_metadata(pa.BufferReader(content)))
    view = memoryview(content)
    checksums = [crc32(view[a:b]) for a, b in zip(first, end, strict=True)]
    words = np.array(checksums, "<u4").tobytes()
    closing = len(checksums).to_bytes(4, "little") + _MAGIC + content[footer:]
    return b"".join((view[:footer], words, crc32(words + closing).to_bytes(4, "little"), closing))


def open_parquet(
    uri: str,
    source: pa.NativeFile,
    verify: bool = True,
    streaming_buffer: int | None = None,
    dictionaries: Sequence[str] = (),
) -> pq.ParquetFile:
    """A Parquet file whose bytes are checked when they are read: all of a sealed file, the pages of any other.

    Args:
        verify: whether to check pages that have checksums.
        streaming_buffer: reads so many bytes at a time, instead of a row group's columns together. Of a sealed file
            pages are checked then.
        dictionaries: columns to read dictionary-encoded.

    Raises:
        CorruptFile: a sealed file is damaged. While rows are read it is raised too.
    """
    size = source.size()
    tail = source.read_at(min(TAIL_BYTES, size), max(0, size - TAIL_BYTES))
    end = int.from_bytes(tail[-8:-4], "little") + 8
    if len(tail) < end + len(_MAGIC) <= size:
        tail = source.read_at(min(size, end + TAIL_BYTES), max(0, size - end - TAIL_BYTES))
    checksums = _read_seal(uri, tail)
    metadata = pq.read_metadata(pa.BufferReader(tail)) if end <= len(tail) else None
    if streaming_buffer is not None:
        verify |= checksums is not None
        options = {"read_dictionary": dictionaries, "page_checksum_verification": verify}
        return pq.ParquetFile(source, metadata=metadata, pre_buffer=False, buffer_size=streaming_buffer, **options)
    if checksums is not None:
        chunks = (*_chunk_edges(metadata), checksums)
        source = pa.PythonFile(_VerifiedFile(uri, source, chunks), mode="r")
        verify = False
    return pq.ParquetFile(source, metadata=metadata, page_checksum_verification=verify, pre_buffer=True)


def _read_seal(uri: str, tail: bytes) -> Sequence[int] | None:
    """The checksums of a file's column chunks, by its last bytes; None for a file without a seal."""
    end = len(tail) - 8 - int.from_bytes(tail[-8:-4], "little")
    magic = end - len(_MAGIC)
    if magic < _WORDS or tail[magic:end] != _MAGIC:
        if _MAGIC in tail:
            raise CorruptFile(damage(uri, "the length of its footer is wrong"))
        return None
    count = int.from_bytes(tail[magic - 4 : magic], "little")
    words = magic - _WORDS - 4 * count
    if words < 0 or tail[-4:] != _END:
        raise CorruptFile(damage(uri, "its end is not what was written"))
    expected = int.from_bytes(tail[magic - _WORDS : magic - 4], "little")
    if crc32(tail[words : magic - _WORDS] + tail[magic - 4 :]) != expected:
        raise CorruptFile(damage(uri, "its footer is not what was written"))
    return [int(word) for word in np.frombuffer(tail[words : magic - _WORDS], "<u4")]


def _chunk_edges(metadata: pq.FileMetaData) -> tuple[list[int], list[int]]:
    """First and end byte of each column chunk, in file order."""
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    chunks = [group.column(column) for group in groups for column in range(metadata.num_columns)]
    first = [min(chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset) for chunk in chunks]
    return first, [start + chunk.total_compressed_size for start, chunk in zip(first, chunks, strict=True)]


class _VerifiedFile(io.RawIOBase):
    """A sealed file for Arrow to read: a column chunk is read whole, and checked, when its first byte is needed."""

    def __init__(self, uri: str, source: pa.NativeFile, chunks: _Chunks) -> None:
        self._uri, self._source, self._chunks = uri, source, chunks
        self._verified = [False] * len(chunks[0])
        self._size, self._position = source.size(), 0
        self._lock = threading.Lock()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def read(self, size: int = -1) -> bytes:
        with self._lock:
            start = self._position
            stop = self._size if size < 0 else min(self._size, start + size)
            self._position = max(start, stop)
            return self._verified_bytes(start, stop) if stop > start else b""

    def close(self) -> None:
        self._source.close()
        super().close()

    def _verified_bytes(self, start: int, stop: int) -> bytes:
        first, end, checksums = self._chunks
        touched = [n for n in range(len(first)) if not self._verified[n] and first[n] < stop and end[n] > start]
        low, high = (min(start, first[touched[0]]), max(stop, end[touched[-1]])) if touched else (start, stop)
        data = memoryview(self._source.read_at(high - low, low))
        for number in touched:
            if crc32(data[first[number] - low : end[number] - low]) != checksums[number]:
                raise CorruptFile(damage(self._uri, f"bytes {first[number]} to {end[number]} are not what was written"))
            self._verified[number] = True
        return bytes(data[start - low : stop - low])


def json_bytes(value: Mapping[str, Any], indent: int | None = 2) -> bytes:
    """A JSON object with a checksum of its values as the last key. Without an indent it is one line."""
    stated = json.loads(_canonical({key: item for key, item in value.items() if key != _JSON_KEY}))
    stated[_JSON_KEY] = _json_checksum(stated)
    return json.dumps(stated, indent=indent, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def parse_json(uri: str, data: bytes) -> dict[str, Any]:
    """A JSON object as it was written; one of an earlier version has no checksum.

    Raises:
        CorruptFile: it is no JSON object, or its values are not those that were written.
    """
    try:
        value = json.loads(data)
    except ValueError as error:  # UnicodeDecodeError too
        raise CorruptFile(damage(uri, f"not JSON ({error})")) from error
    if not isinstance(value, dict):
        raise CorruptFile(damage(uri, "no JSON object"))
    others = {**value}
    stated = others.popitem()[1] if others else None
    if stated == _json_checksum(others):  # whatever became of its name
        return others
    if _JSON_KEY in value:
        raise CorruptFile(damage(uri, "its values are not those that were written"))
    return value


def yaml_bytes(text: str) -> bytes:
    """A YAML file with a checksum of its bytes in a comment at its end."""
    content = text.encode()
    return content + _YAML_MARK + b"%08x\n" % crc32(content)


def check_yaml(uri: str, data: bytes) -> bytes:
    """A YAML file as it was written; one of an earlier version has no checksum. Raises CorruptFile: it is another."""
    content, mark, stated = data.rpartition(_YAML_MARK)
    if mark and stated != b"%08x\n" % crc32(content):
        raise CorruptFile(damage(uri, "its settings are not those that were written"))
    return data


def _canonical(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _json_checksum(value: Mapping[str, Any]) -> str:
    return f"{crc32(_canonical(value).encode()):08x}"
