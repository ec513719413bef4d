"""Runs and graded labels as text: TREC runs and qrels, Quepid, the learning-to-rank plugins' lists, and SVMrank."""

from __future__ import annotations

import csv
import io

import numpy as np

from lakerank.export.format import ExportList, Format, Target, headed, shortest
from lakerank.export.ids import escaped
from lakerank.records import RankedDocument

#: What features 1, 2, … of an SVMrank file are. One that a row lacks is left out, which readers take as 0.
FEATURES = ("logit", "first_stage_score", "first_stage_rank", "truncated")


def trec_run(target: Target) -> Format:
    """`query Q0 document rank score tag`. Ids are escaped; the score is the logit, lowered in ties.

    Readers sort by score and break ties by id their own way, so a logit that would not fall is written as the next
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


def _features(row: RankedDocument, first_stage_score: float | None) -> str:
    values = (shortest(row.logit), first_stage_score, row.first_stage_rank, int(row.truncated))
    return " ".join(f"{number}:{value!r}" for number, value in enumerate(values, start=1) if value is not None)
