"""Rows of published Parquet tables as items and judgements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lakerank.errors import SchemaError
from lakerank.ingest.items import SourceFault, SourceReject
from lakerank.ingest.jsonl import LineFault, read_each, record_id, record_integer
from lakerank.ingest.layouts.published import Published
from lakerank.lake.storage import join
from lakerank.lake.uris import redacted
from lakerank.records import Qrel

#: A page image takes megabytes: so many rows are held at once.
IMAGE_ROWS = 16


def table_columns(folder: Published, paths: Sequence[str], *wanted: tuple[str, ...]) -> list[str]:
    """The columns of a table, after a look that one of each tuple of names is there.

    Raises:
        SchemaError: names the file, the column and what was found.
    """
    found = folder.columns(paths[0])
    for names in wanted:
        if not set(names) & set(found):
            raise SchemaError(
                f"{redacted(join(folder.uri, paths[0]))}: no column {' or '.join(map(repr, names))} "
                f"(found: {', '.join(found)}); see docs/benchmarks.md"
            )
    return found


def image_bytes(row: Mapping[str, Any], name: str) -> bytes:
    """An image as `datasets` stores it: `{"bytes", "path"}`, or the bytes alone; raises `LineFault`."""
    value = row.get(name)
    content = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(content, bytes) or not content:
        raise LineFault(SourceFault.FIELD_MISSING, f"'{name}' holds no image bytes")
    return content


def table_qrels(
    folder: Published, paths: Sequence[str], query_prefix: str, doc_prefix: str
) -> Iterator[Qrel | SourceReject]:
    """Judgements from a table of query id, corpus id and score, its names with hyphens or underscores."""
    queries, documents = ("query-id", "query_id"), ("corpus-id", "corpus_id")

    def judgement(_line: int, row: Mapping[str, Any]) -> Iterator[Qrel]:
        relevance = record_integer(row, "score")
        if relevance is None:
            raise LineFault(SourceFault.FIELD_MISSING, "no 'score'")
        yield Qrel(query_prefix + record_id(row, queries), doc_prefix + record_id(row, documents), relevance)

    for path in paths:
        yield from read_each(path, folder.rows(path, (*queries, *documents, "score")), judgement)
