"""Formats of a row a pair: TREC runs and qrels, Quepid, the learning-to-rank plugins' lists, SVMrank, CSV, Parquet."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.csv

from lakerank.errors import ExportError
from lakerank.export.format import ExportList, Format, Target, headed, shortest
from lakerank.lake.tables import parquet_bytes
from lakerank.records import RankedDocument
from lakerank.schemas import GOLDEN, RANKED

#: What features 1, 2, … of an SVMrank file are. One that a row lacks,
#: NaN and infinity are left out, which readers take as 0.
FEATURES = ("logit", "first_stage_score", "first_stage_rank", "truncated")

#: Rows of a row group: a reader looking up one query reads little.
ROW_GROUP_ROWS = 50_000


def trec_run(target: Target) -> Format:
    """`query Q0 document rank score tag`. Ids are escaped; the score is the logit, lowered in ties.

    Readers sort by score and break ties by id in different ways, so a logit that would not fall is written as the next
    smaller float32: the order is that of the ranks, whoever reads it.
    """
    tag = escaped(target.name or "lakerank")

    def encode(ranked: ExportList) -> bytes:
        query = escaped(ranked.key)
        lines, last = [], np.float32(np.inf)
        for row in ranked.rows:
            score = np.float32(row.logit)
            if score >= last:
                score = np.nextafter(last, np.float32(-np.inf))
            last = score
            lines.append(f"{query} Q0 {escaped(row.doc_id)} {row.rank} {score:.9g} {tag}\n")
        return "".join(lines).encode()

    return Format(".trec", ("doc_id", "rank", "logit"), encode)


def trec_qrels(_target: Target) -> Format:
    """`query 0 document label`, ids escaped."""

    def encode(ranked: ExportList) -> bytes:
        query = escaped(ranked.key)
        return "".join(f"{query} 0 {escaped(row.doc_id)} {row.label}\n" for row in ranked.rows).encode()

    return Format(".qrels", ("doc_id", "label"), encode)


def quepid_csv(_target: Target) -> Format:
    """`query,docid,rating`, as Quepid imports ratings. The query is its text, or its id where it has none."""

    def encode(ranked: ExportList) -> bytes:
        sheet = io.StringIO()
        writer = csv.writer(sheet, lineterminator="\n")
        query = ranked.query_text or ranked.key
        writer.writerows((query, row.doc_id, row.label) for row in ranked.rows)
        return sheet.getvalue().encode()

    header = headed(b"query,docid,rating\n")
    return Format(".csv", ("doc_id", "label"), encode, finish=header, needs_query_text=True)


def ltr_judgements(_target: Target) -> Format:
    """`grade qid:N # document` below `# qid:N: query`, the judgement list of the learning-to-rank plugins' examples."""

    def encode(ranked: ExportList) -> bytes:
        text = " ".join((ranked.query_text or "").split()) or escaped(ranked.key)
        lines = [f"{row.label}\tqid:{ranked.number} #\t{escaped(row.doc_id)}\n" for row in ranked.rows]
        return f"# qid:{ranked.number}: {text}\n{''.join(lines)}".encode()

    return Format(".txt", ("doc_id", "label"), encode, numbered=True, needs_query_text=True)


def svmrank(_target: Target) -> Format:
    """`label qid:N 1:… 2:… # query document`, with FEATURES: SVMrank, LightGBM, XGBoost, RankLib and scikit-learn."""

    def encode(ranked: ExportList) -> bytes:
        query = escaped(ranked.key)
        scores = ranked.first_stage_scores or (None,) * len(ranked.rows)
        return "".join(
            f"{row.label} qid:{ranked.number} {_features(row, score)} # {query} {escaped(row.doc_id)}\n"
            for row, score in zip(ranked.rows, scores, strict=True)
        ).encode()

    columns = ("doc_id", "label", "logit", "first_stage_rank", "truncated")
    return Format(".svm", columns, encode, numbered=True, needs_first_stage_score=True)


def parquet(_target: Target) -> Format:
    """Parquet with the columns of ranked/, sorted by query and rank."""
    return _parquet_of(RANKED)


def golden_pairs(_target: Target) -> Format:
    """Parquet of `query_id, doc_id, logit`: what `audit.golden_pairs` in a config may name."""
    return _parquet_of(GOLDEN)


def flat_csv(_target: Target) -> Format:
    """CSV with the columns of ranked/ and a header; strings in quotes, null as nothing between two commas."""

    def encode(ranked: ExportList) -> bytes:
        sink = pa.BufferOutputStream()
        options = pyarrow.csv.WriteOptions(include_header=False)  # created here: it does not pickle
        pyarrow.csv.write_csv(_batch(ranked, RANKED), sink, options)
        return bytes(sink.getvalue())

    return Format(".csv", tuple(RANKED.names), encode, finish=headed(",".join(RANKED.names).encode() + b"\n"))


def escaped(text: str) -> str:
    """An id without whitespace: whitespace, control characters and % as their UTF-8 bytes in hex, as in a URL.

    `urllib.parse.unquote` gives the id back. Ids that have none of these stay as they are.

    Raises:
        ExportError: the id is empty, which no format in columns can show.
    """
    if not text:
        raise ExportError("an id is empty, and this format has no way to write it; give the document or query an id")
    if text.isascii() and text.isprintable() and " " not in text and "%" not in text:
        return text
    unsafe = {char for char in text if char == "%" or char.isspace() or not char.isprintable()}
    return "".join(quote(char, safe="") if char in unsafe else char for char in text)


def _features(row: RankedDocument, first_stage_score: float | None) -> str:
    values = (shortest(row.logit), first_stage_score, row.first_stage_rank, int(row.truncated))
    known = ((number, value) for number, value in enumerate(values, start=1) if value is not None)
    return " ".join(f"{number}:{value!r}" for number, value in known if math.isfinite(value))


def _batch(ranked: ExportList, schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(
        {name: [getattr(row, name) for row in ranked.rows] for name in schema.names}, schema
    )


def _parquet_of(schema: pa.Schema) -> Format:
    def finish(pieces: Sequence[bytes]) -> bytes:
        batches = [pa.ipc.read_record_batch(pa.py_buffer(piece), schema) for piece in pieces]
        return parquet_bytes(pa.Table.from_batches(batches, schema), row_group_rows=ROW_GROUP_ROWS)

    return Format(
        ".parquet", tuple(schema.names), lambda ranked: bytes(_batch(ranked, schema).serialize()), finish=finish
    )
